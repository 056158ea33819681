"""The ISIC 2018 Task 1 data set of dermoscopic photographs: a lesion's mask for every image.

Classes: 0 skin, 1 lesion. Masks store 0 and 255.
"""

from __future__ import annotations

from pathlib import Path

from scripts.data.checks import add_or_raise

__all__ = ["isic_cases"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_ENDINGS = ("_segmentation", "_superpixels")  # other files in older editions


def isic_cases(root: Path, faults: list[str] | None = None) -> dict[str, list[dict[str, str]]]:
    """Find the images and their masks.

    Images lie in the official ``*_Input`` folders with the masks in ``*_GroundTruth``, or in ``images`` with the
    masks in ``masks``; a mask is called ``<image>_segmentation.png``. If one of several folders is a
    ``*_Training_Input`` folder, only this one is used: it has the 2,594 images of the protocol. Other files
    (superpixels, attribution, metadata, thumbnails) are ignored.

    Args:
        root: folder of the data set.
        faults: if given, faults are added to this list and the first of several files is used.

    Returns:
        one record per image, sorted by name; with ``"label"`` if there is a mask.

    Raises:
        FaultsError: if images differ only in folder and suffix, or an image has several masks; all such pairs.
    """
    inputs = sorted(folder for folder in root.glob("*_Input") if folder.is_dir())
    inputs = [folder for folder in inputs if "training" in folder.name.lower()] or inputs
    masks: dict[str, list[Path]] = {}
    for folder in (*sorted(root.glob("*_GroundTruth")), root / "masks"):
        for mask in sorted(folder.glob("*")):
            if mask.suffix.lower() == ".png" and not mask.name.startswith(".") and not mask.is_dir():
                masks.setdefault(mask.stem, []).append(mask)
    cases: dict[str, list[dict[str, str]]] = {}
    found: list[str] = []
    for folder in (*inputs, root / "images"):
        for image in sorted(folder.glob("*")):
            if image.suffix.lower() not in IMAGE_SUFFIXES or image.stem.endswith(OTHER_ENDINGS):
                continue
            if image.name.startswith(".") or image.is_dir():  # what macOS and some archives leave beside the files
                continue
            if image.stem in cases:
                other = cases[image.stem][0]["image"]
                found.append(f"'{other}' and '{image}' have the same name: expected one file per image.")
                continue
            record = {"image": str(image), "case": image.stem}
            labels = masks.get(f"{image.stem}_segmentation", [])
            if labels:
                record["label"] = str(labels[0])
            found += [f"'{labels[0]}' and '{other}' are both the mask of '{image}'." for other in labels[1:]]
            cases[image.stem] = [record]
    add_or_raise(found, faults)
    return dict(sorted(cases.items()))
