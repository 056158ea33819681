"""Data sets of one's own: images and labels that go by the same name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from scripts.data.checks import add_or_raise
from scripts.utils.files import files_below

__all__ = ["IGNORED", "IMAGE_SUFFIXES", "custom_cases", "image_files", "is_label", "name_of"]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".png", ".jpg", ".jpeg")
_LABEL = ("_gt", "_segmentation", "_seg", "_label", "_mask")
# maps of probabilities, ACDC's whole cines, ISIC's superpixels, the picture that `prepare` makes
IGNORED = ("_pred", "_prob", "_4d", "_superpixels", "_montage")
_FOLDERS = {"images": ("labels", "masks"), "imagestr": ("labelstr",), "imagests": ("labelsts",)}
_INPUT, _TRUTH = "_input", "_groundtruth"  # how the names of ISIC's folders end
_CHANNEL = re.compile(r"_0000$")  # nnU-Net's name of an image's only channel
_WHICH = "which of the two is meant?"


def custom_cases(root: Path, faults: list[str] | None = None) -> dict[str, list[dict[str, str]]]:
    """Find images and their labels; every image is a case of its own.

    Labels lie beside the images as ``NAME_gt``, ``_segmentation``, ``_seg``, ``_label`` or ``_mask``, or, then also
    without such an ending, in a folder ``labels`` or ``masks`` beside ``images``, ``labelsTr`` beside ``imagesTr``,
    ``labelsTs`` beside ``imagesTs``, or ``*_GroundTruth`` beside ``*_Input``; between such a folder and the files the
    folders of both are the same. Capitals are of no account in what tells a label. Files that end in ``_pred``,
    ``_prob``, ``_4d``, ``_superpixels`` or ``_montage`` are neither. Cases that have several images, such as a patient
    with two visits, need a datalist that says so.

    Args:
        root: folder of the data set, searched with its subfolders and linked ones, see
            :func:`scripts.utils.files.files_below`.
        faults: where given, what is wrong is added here and the first of several files counts.

    Returns:
        records by case, which is the image's path below ``root`` without its suffix.

    Raises:
        FaultsError: when two images differ only in their suffix, an image has several labels or several images have
            the same, or a link leads nowhere; all of them.
    """
    found, labels = _images_and_labels(root)
    every = [*found, *(path for paths in labels.values() for path in paths)]
    wrong = [f"'{path}' is a link that leads nowhere." for path in every if not path.exists()]
    folders = sorted({name.rpartition("/")[0] for name in labels})
    cases: dict[str, list[dict[str, str]]] = {}
    owners: dict[Path, Path] = {}
    for path in found:
        name = str(name_of(path.relative_to(root)))
        if name in cases:
            wrong.append(f"'{cases[name][0]['image']}' and '{path}' differ only in their suffix: {_WHICH}")
            continue
        own = [label for candidate in _candidates(name.lower(), folders) for label in labels.get(candidate, ())]
        wrong += [f"'{own[0]}' and '{other}' are both labels of '{path}': {_WHICH}" for other in own[1:]]
        cases[name] = [{"image": str(path), "case": name}]
        if own:
            cases[name][0]["label"] = str(own[0])
            if (owner := owners.setdefault(own[0], path)) != path:
                wrong.append(f"'{owner}' and '{path}' have the same label '{own[0]}': {_WHICH}")
    add_or_raise(wrong, faults)
    return cases


def image_files(root: Path) -> list[Path]:
    """The images of a folder in the order of their paths, see :func:`custom_cases`; what labels are like is no matter.

    Args:
        root: see :func:`custom_cases`.

    Raises:
        FaultsError: where links lead nowhere.
    """
    images, _ = _images_and_labels(root)
    add_or_raise([f"'{path}' is a link that leads nowhere." for path in images if not path.exists()], None)
    return images


def name_of(path: Path) -> str | None:
    """An image file's path without its suffix, with forward slashes; None for a file of another type."""
    name = path.as_posix()
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), None)
    return None if suffix is None else name[: len(name) - len(suffix)]


def is_label(name: str) -> bool:
    """Whether a file is a label, from its path below the data set's folder: in small letters, without its suffix."""
    folders = name.split("/")[:-1]
    place = _place(folders)
    return name.endswith(_LABEL) or (place is not None and not _has_images(folders[place]))


def _images_and_labels(root: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """The images of a folder, and its labels by their path below it: in small letters, without the suffix."""
    images: list[Path] = []
    labels: dict[str, list[Path]] = {}
    for path in files_below(root):
        name = (name_of(path.relative_to(root)) or "").lower()
        if not name or name.endswith(IGNORED):
            continue
        if is_label(name):
            labels.setdefault(name, []).append(path)
        else:
            images.append(path)
    return images, labels


def _has_images(folder: str) -> bool:
    return folder in _FOLDERS or folder.endswith(_INPUT)


def _has_labels(folder: str) -> bool:
    return folder.endswith(_TRUTH) or any(folder in labels for labels in _FOLDERS.values())


def _place(folders: Sequence[str]) -> int | None:
    """Which folder of a path says by its name whether images or labels lie below: the innermost that does."""
    places = (i for i in reversed(range(len(folders))) if _has_images(folders[i]) or _has_labels(folders[i]))
    return next(places, None)


def _candidates(name: str, label_folders: Sequence[str]) -> list[str]:
    """The names that an image's label may have, all in small letters."""
    *parts, stem = name.split("/")
    folders = ["/".join(parts)]
    place = _place(parts)
    if place is not None:
        above, last, below = parts[:place], parts[place], parts[place + 1 :]
        folders += ["/".join([*above, other, *below]) for other in _FOLDERS.get(last, ())]
        if last.endswith(_INPUT):
            cut = [f.split("/") for f in label_folders]
            folders += [
                "/".join(f)
                for f in cut
                if f[:place] == above and f[place + 1 :] == below and f[place : place + 1] and f[place].endswith(_TRUTH)
            ]
    stems = dict.fromkeys((stem, _CHANNEL.sub("", stem)))
    return ["/".join(filter(None, (f, s + e))) for f in folders for s in stems for e in ("", *_LABEL)]
