"""Custom data sets: images and labels with matching names."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scripts.data.checks import add_or_raise
from scripts.utils.files import files_below

__all__ = ["IGNORED", "IMAGE_SUFFIXES", "custom_cases", "image_files", "is_label", "name_of"]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".nrrd", ".png", ".jpg", ".jpeg")
_LABEL = ("_gt", "_segmentation", "_seg", "_label", "_mask")
# maps of probabilities, ACDC's whole cines, ISIC's superpixels, the picture that `prepare` makes
IGNORED = ("_pred", "_prob", "_4d", "_superpixels", "_montage")
_WORDS = ("segmentation", "label", "mask", "seg", "gt")  # names of a folder's only label
_NUMBERED = re.compile(r"(segmentation|label|mask)-(\d+)$")  # as in LiTS, for volume-NUMBER
_FOLDERS = {"images": ("labels", "masks", "segmentations"), "imagestr": ("labelstr",), "imagests": ("labelsts",)}
_INPUT, _TRUTH = "_input", "_groundtruth"  # suffixes of ISIC's folders
_CHANNEL = re.compile(r"_0000$")  # nnU-Net's name of an image's first channel
_FURTHER = re.compile(r"_000[1-9]$")
_WHICH = "expected one of the two."


def custom_cases(root: Path, faults: list[str] | None = None) -> dict[str, list[dict[str, str]]]:
    """Find images and their labels; every image is a case of its own.

    Labels lie next to the images as ``NAME_gt``, ``_segmentation``, ``_seg``, ``_label`` or ``_mask``. With or without
    such an ending they may also lie in a folder ``labels``, ``masks`` or ``segmentations`` next to ``images``,
    ``labelsTr`` next to ``imagesTr``, ``labelsTs`` next to ``imagesTs``, or ``*_GroundTruth`` next to ``*_Input``, in
    the same subfolders as the images. ``segmentation-3`` is the label of ``volume-3``, and a file ``segmentation``,
    ``label``, ``mask``, ``seg`` or ``gt`` the label of the only image in its folder. Names are compared in one Unicode
    form, because macOS unzips names in another form than most systems write. Endings of labels are not case-sensitive.
    Files that end in ``_pred``, ``_prob``, ``_4d``, ``_superpixels`` or ``_montage`` are ignored. Cases with several
    images, such as a patient with two visits, need a datalist.

    Args:
        root: folder of the data set, searched with its subfolders and linked ones, see
            :func:`scripts.utils.files.files_below`.
        faults: if given, faults are added to this list and the first of several files is used.

    Returns:
        records by case, which is the image's path below ``root`` without its suffix.

    Raises:
        FaultsError: if two images differ only in their suffix, an image has several labels, several images have the
            same label, a file is a further channel of an image, or a link is broken; all such faults.
    """
    found, labels = _images_and_labels(root)
    every = [*found, *(path for paths in labels.values() for path in paths)]
    wrong = [f"'{path}' is a broken link." for path in every if not path.exists()]
    wrong += _further_channels(found)
    folders = sorted({name.rpartition("/")[0] for name in labels})
    beside = Counter(path.parent for path in found)
    cases: dict[str, list[dict[str, str]]] = {}
    owners: dict[Path, Path] = {}
    for path in found:
        name = unicodedata.normalize("NFC", str(name_of(path.relative_to(root))))
        if name in cases:
            wrong.append(f"'{cases[name][0]['image']}' and '{path}' differ only in their suffix: {_WHICH}")
            continue
        candidates = _candidates(name.lower(), folders)
        if beside[path.parent] == 1:
            candidates += [f"{name.lower().rpartition('/')[0]}/{word}".lstrip("/") for word in _WORDS]
        own = [label for candidate in candidates for label in labels.get(candidate, ())]
        wrong += [f"'{own[0]}' and '{other}' are both labels of '{path}': {_WHICH}" for other in own[1:]]
        cases[name] = [{"image": str(path), "case": name}]
        if own:
            cases[name][0]["label"] = str(own[0])
            if (owner := owners.setdefault(own[0], path)) != path:
                wrong.append(f"'{owner}' and '{path}' have the same label '{own[0]}': {_WHICH}")
    add_or_raise(wrong, faults)
    return cases


def image_files(root: Path) -> list[Path]:
    """The images of a folder sorted by path, see :func:`custom_cases`; labels are not checked.

    Args:
        root: see :func:`custom_cases`.

    Raises:
        FaultsError: if links are broken, or files are further channels of an image.
    """
    images, _ = _images_and_labels(root)
    wrong = [f"'{path}' is a broken link." for path in images if not path.exists()]
    add_or_raise(wrong + _further_channels(images), None)
    return images


def name_of(path: Path) -> str | None:
    """An image file's path without its suffix, with forward slashes; None for a file of another type."""
    name = path.as_posix()
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), None)
    return None if suffix is None else name[: len(name) - len(suffix)]


def is_label(name: str) -> bool:
    """Whether a file is a label, from its path below the data set's folder, in lower case and without suffix."""
    *folders, stem = name.split("/")
    place = _place(folders)
    named = stem.endswith(_LABEL) or stem in _WORDS or _NUMBERED.match(stem) is not None
    return named or (place is not None and not _has_images(folders[place]))


def _images_and_labels(root: Path) -> tuple[list[Path], dict[str, list[Path]]]:
    """The images of a folder, and its labels by their relative path in lower case without suffix."""
    images: list[Path] = []
    labels: dict[str, list[Path]] = {}
    for path in files_below(root):
        name = unicodedata.normalize("NFC", (name_of(path.relative_to(root)) or "").lower())
        if not name or name.endswith(IGNORED):
            continue
        if is_label(name):
            labels.setdefault(name, []).append(path)
        else:
            images.append(path)
    return images, labels


def _further_channels(images: Sequence[Path]) -> list[str]:
    """A fault for each file that is a further channel of an image according to nnU-Net's names."""
    names = {str(name_of(path)): path for path in images}
    return [
        f"'{path}' is a further channel of '{names[first]}' by its name: expected all channels in one file, "
        "stacked along its last axis."
        for name, path in names.items()
        if _FURTHER.search(name) and (first := _FURTHER.sub("_0000", name)) in names
    ]


def _has_images(folder: str) -> bool:
    return folder in _FOLDERS or folder.endswith(_INPUT)


def _has_labels(folder: str) -> bool:
    return folder.endswith(_TRUTH) or any(folder in labels for labels in _FOLDERS.values())


def _place(folders: Sequence[str]) -> int | None:
    """The innermost folder of a path whose name tells whether it contains images or labels."""
    places = (i for i in reversed(range(len(folders))) if _has_images(folders[i]) or _has_labels(folders[i]))
    return next(places, None)


def _candidates(name: str, label_folders: Sequence[str]) -> list[str]:
    """The possible names of an image's label, in lower case."""
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
    names = [s + e for s in stems for e in ("", *_LABEL)]
    if numbered := re.match(r"volume-(\d+)$", stem):
        names += [f"{word}-{numbered[1]}" for word in _WORDS]
    return ["/".join(filter(None, (f, n))) for f in folders for n in names]
