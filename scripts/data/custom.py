"""Data sets of one's own: images and labels that go by the same name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from scripts.data.checks import add_or_raise
from scripts.files import files_below

__all__ = ["IGNORED", "IMAGE_SUFFIXES", "custom_cases", "is_label", "name_of"]

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".mhd", ".mha", ".png", ".jpg", ".jpeg")
_LABEL = ("_gt", "_segmentation", "_seg", "_label", "_mask")
# maps of probabilities, ACDC's whole cines, ISIC's superpixels, the picture that `prepare` makes
IGNORED = ("_pred", "_prob", "_4d", "_superpixels", "_montage")
_FOLDERS = {"images": ("labels", "masks"), "imagestr": ("labelstr",)}
_INPUT, _TRUTH = "_input", "_groundtruth"  # how the names of ISIC's folders end
_CHANNEL = re.compile(r"_0000$")  # nnU-Net's name of an image's only channel


def custom_cases(root: Path, faults: list[str] | None = None) -> dict[str, list[dict[str, str]]]:
    """Find images and their labels; every image is a case of its own.

    Labels lie beside the images as ``NAME_gt``, ``_segmentation``, ``_seg``, ``_label`` or ``_mask``, or in a folder
    ``labels`` or ``masks`` beside ``images``, or ``labelsTr`` beside ``imagesTr`` (then also without such an
    ending), or in ``*_GroundTruth`` beside ``*_Input``. Capitals are of no account in what tells a label. Files that
    end in ``_pred``, ``_prob``, ``_4d``, ``_superpixels`` or ``_montage`` are neither. Cases that have several images,
    such as a patient with two visits, need a datalist that says so.

    Args:
        root: folder of the data set, searched with its subfolders and linked ones, see
            :func:`scripts.files.files_below`.
        faults: where given, what is wrong is added here and the first of several files counts.

    Returns:
        records by case, which is the image's path below ``root`` without its suffix.

    Raises:
        FaultsError: when two images, or two labels of an image, differ only in their suffix; all such pairs.
    """
    images: dict[str, Path] = {}
    labels: dict[str, list[Path]] = {}
    twins: list[tuple[Path, Path]] = []
    for path in files_below(root):
        name = name_of(path.relative_to(root))
        if name is None or name.lower().endswith(IGNORED):
            continue
        if is_label(name.lower()):
            labels.setdefault(name.lower(), []).append(path)
        elif images.setdefault(name, path) != path:
            twins.append((images[name], path))
    folders = sorted({name.rpartition("/")[0] for name in labels})
    cases = {}
    for name, path in images.items():
        record = {"image": str(path), "case": name}
        found = next((labels[c] for c in _candidates(name.lower(), folders) if c in labels), [])
        twins += [(found[0], other) for other in found[1:]]
        if found:
            record["label"] = str(found[0])
        cases[name] = [record]
    add_or_raise([f"'{a}' and '{b}' differ only in their suffix: which of the two is meant?" for a, b in twins], faults)
    return cases


def name_of(path: Path) -> str | None:
    """An image file's path without its suffix, with forward slashes; None for a file of another type."""
    name = path.as_posix()
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)), None)
    return None if suffix is None else name[: len(name) - len(suffix)]


def is_label(name: str) -> bool:
    """Whether a file is a label, from its path below the data set's folder: in small letters, without its suffix."""
    parent = name.rsplit("/", 2)[-2] if "/" in name else ""
    known = parent.endswith(_TRUTH) or any(parent in labels for labels in _FOLDERS.values())
    return known or name.endswith(_LABEL)


def _candidates(name: str, label_folders: Sequence[str]) -> list[str]:
    """The names that an image's label may have, all in small letters."""
    folder, _, stem = name.rpartition("/")
    above, _, last = folder.rpartition("/")
    folders = [folder, *("/".join(filter(None, (above, labels))) for labels in _FOLDERS.get(last, ()))]
    if last.endswith(_INPUT):
        folders += [f for f in label_folders if f.endswith(_TRUTH) and f.rpartition("/")[0] == above]
    stems = (stem, _CHANNEL.sub("", stem))
    return ["/".join(filter(None, (f, s + e))) for f in folders for s in stems for e in ("", *_LABEL)]
