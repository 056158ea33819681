"""The images of a workflow: those to segment, and the labelled ones to evaluate."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from scripts.data.dicom.volume import DicomVolume, dicom_module, holds_dicom
from scripts.data.layouts.custom import IMAGE_SUFFIXES, custom_cases, image_files, name_of
from scripts.data.layouts.datalist import read_datalist
from scripts.data.records import dataset_records

__all__ = [
    "evaluation_records",
    "find_images",
    "find_labeled",
    "source_root",
]

logger = logging.getLogger(__name__)


def find_images(
    source: str | Path,
    phase: Any = None,
    modality: str | None = None,
    series: str | None = None,
    photographs: bool = False,
) -> list[dict[str, str]]:
    """List the images to segment.

    Args:
        source: an image file (NIfTI, MetaImage, NRRD, PNG, JPEG or DICOM); a folder, with the images of
            :func:`scripts.data.layouts.custom.image_files` (without labels and results of inference) and the volumes in
            its DICOM files, see :func:`scripts.data.dicom.find.find_volumes`; or a datalist JSON, see
            :func:`scripts.data.layouts.datalist.read_datalist`, from which ``test`` and ``testing`` are used, else
            ``validation``, else ``training``.
        phase: phase of the heart, for DICOM like the next two; see :func:`scripts.data.dicom.find.find_volumes`.
        modality: MR or CT.
        series: a regular expression that matches descriptions of series.
        photographs: whether photographs are segmented.

    Returns:
        Records ``{"image": absolute path}``; a folder's sorted, a datalist's in its own order. The path of a volume in
        DICOM files is a :class:`scripts.data.dicom.volume.DicomVolume`.

    Raises:
        FileNotFoundError: if the source does not exist, or a folder has no image.
        ValueError: if the file is of another type, the datalist names no image or one that does not exist, or two
            images of one folder differ only in their suffix: their results would have the same name.
    """
    path = Path(os.path.abspath(source))
    options = {"phase": phase, "modality": modality, "series": series, "photographs": photographs}
    images: list[Path] = []
    volumes: list[DicomVolume] = []
    if path.is_dir():
        images = image_files(path)
        if holds_dicom(path):
            volumes = _volumes(path, options, needed=not images)
        elif not images:
            raise FileNotFoundError(f"No image ({', '.join(IMAGE_SUFFIXES)} or DICOM) in folder '{path}' or below.")
    elif not path.exists():
        raise FileNotFoundError(
            f"dataset_dir '{path}' does not exist: expected an image, a folder of images or a datalist JSON."
        )
    elif path.suffix.lower() == ".json":
        images = _images_of_datalist(path)
    elif name_of(path):
        images = [path]
    elif holds_dicom(path):
        volumes = _volumes(path, options, needed=True)
    else:
        raise ValueError(f"'{path}' is not an image ({', '.join(IMAGE_SUFFIXES)} or DICOM), folder or datalist JSON.")
    names: dict[str | None, Path] = {}
    for image in images:
        other = names.setdefault(name_of(image), image)
        if other != image:
            raise ValueError(f"'{other}' and '{image}' differ only in their suffix: their results would collide.")
    return [{"image": image} for image in (*map(str, images), *volumes)]


def find_labeled(source: str | Path) -> list[dict[str, str]]:
    """List the images that have a label.

    Args:
        source: a folder, see :func:`scripts.data.layouts.custom.custom_cases`, or a datalist with all its parts.

    Returns:
        Records ``{"image": path, "label": path, "case": name}``; images without a label are left out.

    Raises:
        FileNotFoundError: if there is no such folder or file, or no image has a label.
        ValueError: if the folder or the datalist is invalid.
    """
    path = Path(os.path.abspath(source))
    if path.suffix.lower() == ".json":
        lists = read_datalist(path).values()
    elif path.is_dir():
        lists = custom_cases(path).values()
    else:
        raise FileNotFoundError(f"dataset_dir '{path}' is neither a folder of images nor a datalist JSON.")
    records = [record for of_list in lists for record in of_list if "label" in record]
    if not records:
        raise FileNotFoundError(f"No image in '{path}' has a label, such as NAME_gt or NAME_segmentation beside NAME.")
    return records


def evaluation_records(
    layout: str,
    dataset_dir: str | Path,
    part: str,
    splits: str | Path | None = None,
    allow_missing: bool = False,
    fold: int = 0,
) -> list[dict[str, str]]:
    """List the labelled cases to evaluate.

    Args:
        layout: layout of the data set, see :func:`scripts.data.dataset_records`; ignored if ``part`` is ``all``.
        dataset_dir: folder of the data set, or its datalist.
        part: a part of the split (``val``, ``test``, ``train``), or ``all``: every labelled image, see
            :func:`find_labeled`.
        splits: JSON file of the split; ignored if ``part`` is ``all``.
        allow_missing: whether cases of the split may be missing.
        fold: see :func:`scripts.data.dataset_records`.

    Returns:
        Records with ``image`` and ``label``.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if the split has no such part or the part is empty.
    """
    if part == "all":
        return find_labeled(dataset_dir)
    records = dataset_records(layout, dataset_dir, part, splits, allow_missing=allow_missing, fold=fold)
    if not records:
        raise ValueError(f"Part '{part}' of {splits} is empty: nothing to evaluate.")
    return records


def source_root(source: str | Path) -> str:
    """Common folder of all images of a source; results repeat the folders between it and an image.

    Args:
        source: see :func:`find_images`; may be missing, so that a configuration can be read without data.

    Returns:
        The source itself if it is a folder or missing, else the innermost common folder of its images.
    """
    path = os.path.abspath(source)
    if not os.path.isfile(path):
        return path
    if not path.lower().endswith(".json"):
        return os.path.dirname(path)
    return os.path.commonpath([os.path.dirname(record["image"]) for record in find_images(path)])


def _volumes(path: Path, options: dict[str, Any], needed: bool) -> list[DicomVolume]:
    """The volumes in DICOM files, and one with its fault for each refused series.

    Raises:
        FileNotFoundError: if there is none and one is needed.
    """
    found = dicom_module("find").find_volumes(path, **options)
    for line in found.skipped:
        logger.info("Skipped: %s", line)
    if needed and not found.volumes:
        reason = (found.refused or found.skipped or ["no DICOM file"])[0]
        raise FileNotFoundError(f"No DICOM volume to segment in '{path}': {reason}")
    root = path if path.is_dir() else path.parent
    names = (line.partition(" ")[0].rstrip(":") for line in found.refused)
    refused = [DicomVolume(str(root / f"{n}.dcm"), fault=line) for n, line in zip(names, found.refused, strict=True)]
    return [*found.volumes, *refused]


def _images_of_datalist(path: Path) -> list[Path]:
    """Images of the first part of a datalist that has any, with or without labels."""
    for part in ("test", "val", "train"):
        if records := read_datalist(path, only=part, labels=False).get(part):
            return [Path(record["image"]) for record in records]
    raise ValueError(f"{path}: the datalist names no image.")
