"""The ISIC 2018 Task 1 data set of dermoscopic photographs: a lesion's mask for every image.

Classes: 0 skin, 1 lesion. Masks store 0 and 255.
"""

from __future__ import annotations

from pathlib import Path

from scripts.errors import FaultsError

__all__ = ["isic_cases"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
OTHER_ENDINGS = ("_segmentation", "_superpixels")  # what older editions keep beside the images


def isic_cases(root: Path) -> dict[str, list[dict[str, str]]]:
    """Find the images and their masks.

    Images lie in the official ``*_Input`` folders with the masks in ``*_GroundTruth``, or in ``images`` with the
    masks in ``masks``; a mask is called ``<image>_segmentation.png``. Where a ``*_Training_Input`` folder is among
    several, it alone counts: the 2,594 images of the protocol are its. Whatever else lies there (superpixels,
    attribution, metadata, thumbnails) is ignored.

    Args:
        root: folder of the data set.

    Returns:
        one record by image, in the order of their names; ``"label"`` where there is a mask.

    Raises:
        ValueError: when images have the same name but for folder and suffix; all such pairs.
    """
    inputs = sorted(folder for folder in root.glob("*_Input") if folder.is_dir())
    inputs = [folder for folder in inputs if "training" in folder.name.lower()] or inputs
    masks = {
        mask.name: mask for folder in (*root.glob("*_GroundTruth"), root / "masks") for mask in sorted(folder.glob("*"))
    }
    cases: dict[str, list[dict[str, str]]] = {}
    faults: list[str] = []
    for folder in (*inputs, root / "images"):
        for image in sorted(folder.glob("*")):
            if image.suffix.lower() not in IMAGE_SUFFIXES or image.stem.endswith(OTHER_ENDINGS):
                continue
            if image.stem in cases:
                other = cases[image.stem][0]["image"]
                faults.append(f"'{other}' and '{image}' have the same name: an image is there once.")
                continue
            record = {"image": str(image), "case": image.stem}
            mask = masks.get(f"{image.stem}_segmentation.png")
            if mask is not None:
                record["label"] = str(mask)
            cases[image.stem] = [record]
    if faults:
        raise FaultsError(faults)
    return dict(sorted(cases.items()))
