"""Masks of one class each, merged into one label map for each image, for ``python -m bundle prepare``."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from tqdm import tqdm

from scripts.data import LoadImageVolumed
from scripts.data.checks import add_or_raise, check_grids
from scripts.data.layouts.custom import image_files, name_of
from scripts.data.layouts.datalist import PARTS
from scripts.data.readers import is_photograph
from scripts.data.writers import SaveImageVolumed
from scripts.utils.errors import one_line
from scripts.utils.files import as_stored, write_text
from scripts.utils.validation import faults_of, parse_json, read_text

__all__ = ["merge_listed", "merge_masks"]

Item = TypeVar("Item")


def merge_masks(root: Path, patterns: str | Sequence[str], folder: Path) -> Path:
    """Merge the masks of every image and list the images with their label maps.

    Args:
        root: folder of the images, see :func:`scripts.data.layouts.custom.image_files`.
        patterns: the masks' paths relative to their image, one for each class, with ``{name}`` for the image's name
            without its suffix: ``segmentations/liver.nii.gz`` or ``{name}_myo.nii.gz``. Values other than 0 are the
            class. If a mask is missing, the image does not show the class; an image without masks has no label.
        folder: folder for label maps and datalist, created if missing.

    Returns:
        The datalist: all images as ``training``, and the names of the classes from the masks' files.

    Raises:
        ValueError: if there is no pattern, or no mask matches.
        FaultsError: masks on another grid than their image, or that overlap; all such masks.
    """
    files = patterns.split(",") if isinstance(patterns, str) else [str(pattern) for pattern in patterns]
    files = [pattern.strip() for pattern in files]
    if not all(name_of(Path(pattern)) for pattern in files):
        raise ValueError(f"label_files: expected paths such as {{name}}_liver.nii.gz, found {files}.")
    masks = {image: [_mask(image, pattern) for pattern in files] for image in image_files(root)}
    taken = {mask for image, of_image in masks.items() for mask in of_image if mask.is_file() and mask != image}
    entries: list[dict[str, Any]] = []
    faults: list[str] = []
    for image, of_image in _shown(masks.items()):
        if image in taken:
            continue
        entry = {"image": os.path.relpath(image, folder)}
        there = {number: mask for number, mask in enumerate(of_image, start=1) if mask.is_file()}
        entries.append(_with_label(entry, image, there, root, folder, faults))
    add_or_raise(faults, None)
    if not any("label" in entry for entry in entries):
        raise ValueError(f"label_files: no image of '{root}' has a mask {' or '.join(files)}.")
    labels = {str(number): _class_name(pattern) or str(number) for number, pattern in enumerate(files, start=1)}
    return _write(folder, {"labels": {"0": "background", **labels}, "training": entries})


def merge_listed(path: Path, folder: Path) -> Path:
    """Merge the masks that a datalist names, and list the label maps in their place.

    Args:
        path: datalist whose entries may have a list as ``label``: the masks of the classes in order from 1, None if
            the image does not show the class.
        folder: folder for label maps and datalist, created if missing.

    Returns:
        The new datalist with all other keys of the old one; the old one if no entry lists masks, or if the datalist is
        invalid, which :func:`scripts.data.layouts.datalist.read_datalist` reports.

    Raises:
        ValueError: if the file is not JSON, or has ``label_values``, which masks of one class each do not store.
        FaultsError: all missing masks, masks on another grid than their image, and masks that overlap.
    """
    content = parse_json(read_text(path), path, "datalist") if path.is_file() else None
    if content is None or faults_of(content, "datalist"):
        return path
    entries = [entry for part in PARTS for entry in content.get(part) or () if isinstance(entry, dict)]
    listed = [entry["label"] for entry in entries if isinstance(entry.get("label"), list)]
    if not listed:
        return path
    if content.get("label_values") is not None:
        raise ValueError(f"{path}: label_values: masks of one class each store no values of classes.")
    base = Path(os.path.abspath(path)).parent
    root = Path(os.path.commonpath([(base / entry["image"]).parent for entry in entries]))
    faults: list[str] = []

    def moved(entry: dict[str, Any] | str) -> dict[str, Any]:
        old = {"image": entry} if isinstance(entry, str) else entry
        new = {key: value for key, value in old.items() if key != "label"}
        new["image"], label = os.path.relpath(_place(base, old["image"]), folder), old.get("label")
        if isinstance(label, str):
            new["label"] = os.path.relpath(_place(base, label), folder)
        if not isinstance(label, list):
            return new
        new.pop("sha256", None)
        masks = {number: _place(base, mask) for number, mask in enumerate(label, start=1) if mask is not None}
        faults.extend(f"{path} names '{mask}', which is no file." for mask in masks.values() if not mask.is_file())
        there = {number: mask for number, mask in masks.items() if mask.is_file()}
        return _with_label(new, _place(base, old["image"]), there, root, folder, faults)

    every = [(part, entry) for part in PARTS for entry in content.get(part) or ()]
    parts: dict[str, list[dict[str, Any]]] = {}
    for part, entry in _shown(every):
        parts.setdefault(part, []).append(moved(entry))
    add_or_raise(faults, None)
    numbers = {str(number): str(number) for number in range(1, 1 + max(map(len, listed)))}
    return _write(folder, {**content, "labels": content.get("labels") or numbers, **parts})


def _shown(images: Collection[Item]) -> Iterable[Item]:
    """The images, with a progress bar on a terminal."""
    bar: Iterable[Item] = tqdm(images, desc="merging masks", unit="image", disable=None)
    return bar


def _place(base: Path, name: str) -> Path:
    return Path(as_stored(os.path.normpath(base / name)))


def _with_label(
    entry: dict[str, Any], image: Path, masks: dict[int, Path], root: Path, folder: Path, faults: list[str]
) -> dict[str, Any]:
    """An entry with the label map of its masks by class, where there are any; what is wrong is added to the faults."""
    if not masks:
        return entry
    try:
        return {**entry, "label": os.path.relpath(_merge(image, masks, root, folder), folder)}
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        faults.append(one_line(error))
    return entry


def _write(folder: Path, content: dict[str, Any]) -> Path:
    target = folder / "merged.json"
    write_text(target, json.dumps(content, indent=1) + "\n")
    return target


def _mask(image: Path, pattern: str) -> Path:
    stem = str(name_of(Path(image.name)))
    return Path(os.path.normpath(image.parent / pattern.replace("{name}", stem)))


def _class_name(pattern: str) -> str:
    return str(name_of(Path(Path(pattern.replace("{name}", "")).name)) or "").strip("._- ")


def _merge(image: Path, masks: dict[int, Path], root: Path, folder: Path) -> Path:
    """Write the label map of an image, on its grid, and return its path."""
    load = Compose([LoadImageVolumed("file"), EnsureChannelFirstd("file")])
    volume: MetaTensor = load({"file": str(image)})["file"]
    classes = torch.zeros(volume.shape[1:])
    for number, path in masks.items():
        mask = load({"file": str(path)})["file"]
        check_grids(volume, mask, {"image": str(image), "label": str(path)})
        shown = mask.as_tensor()[0] != 0
        if overlap := int((shown & (classes > 0)).sum()):
            other = masks[int(classes[shown & (classes > 0)][0])]
            raise ValueError(f"'{other}' and '{path}' overlap in {overlap} voxels: expected one class per voxel.")
        classes[shown] = number
    suffix = ".png" if is_photograph(image) else ".mha" if image.suffix.lower() in (".mha", ".mhd") else ".nii.gz"
    merged = MetaTensor(classes[None], meta=volume.meta)
    save = SaveImageVolumed(
        "label",
        suffix,
        output_dir=str(folder),
        output_postfix="gt",
        output_dtype=np.uint8,
        data_root_dir=str(root),
        print_log=False,
    )
    save({"label": merged})
    stem = str(name_of(image.relative_to(root)))
    return folder / f"{stem}_gt{suffix}"
