"""Flags for implausible label maps, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["check_enclosing", "component_flags", "plane_flags"]

SECOND = 0.05
"""Share of a class's voxels outside its largest component at which the class is flagged as fragmented."""

OPEN = 0.25
"""Share of an enclosed class's outline that may touch another class than the enclosing one."""


CUT = 0.05
"""Share of a class's outline that may lie on the slices' border; a few pixels there cut little off."""


def check_enclosing(enclosing: Any, num_classes: int) -> dict[int, int]:
    """Check the option ``enclosing``: by class, the class that it must enclose.

    Raises:
        ValueError: unless all are foreground classes.
    """
    try:
        pairs = {int(outer): int(inner) for outer, inner in dict(enclosing).items()}
    except (TypeError, ValueError):
        pairs = {0: 0}
    if any(number not in range(1, num_classes) for pair in pairs.items() for number in pair):
        raise ValueError(
            f'enclosing: expected foreground classes such as {{"2": "3"}} (class 2 encloses class 3), '
            f"1 to {num_classes - 1}, found {enclosing!r}."
        )
    return pairs


def component_flags(classes: NDArray[np.integer], num_classes: int) -> dict[int, list[str]]:
    """Flags of each class's components: ``empty``, or its number of pieces.

    Args:
        classes: label map of an image or volume.
        num_classes: classes, background included.

    Returns:
        a list for each foreground class.
    """
    found: dict[int, list[str]] = {}
    for c in range(1, num_classes):
        mask = classes == c
        pieces, count = ndimage.label(mask, np.ones((3,) * mask.ndim))
        sizes = np.bincount(pieces.ravel())[1:]
        scattered = count > 1 and sizes.max() < (1 - SECOND) * sizes.sum()
        found[c] = ["empty"] if count == 0 else [f"{count} components"] if scattered else []
    return found


def plane_flags(
    classes: NDArray[np.integer], num_classes: int, enclosing: Mapping[int, int] | None = None
) -> dict[int, list[str]]:
    """Flags of classes cut by the slices' border or not enclosing the class that they should.

    Args:
        classes: label map ``[H, W, slices]`` as the network sees it.
        num_classes: classes, background included.
        enclosing: by class, the class that it must enclose in every slice, such as myocardium and left ventricle.

    Returns:
        a list for each foreground class.
    """
    found: dict[int, list[str]] = {c: [] for c in range(1, num_classes)}
    cross = ndimage.generate_binary_structure(2, 1)[..., None]
    border = np.ones((*classes.shape[:2], 1), bool)
    border[1:-1, 1:-1] = False
    for c in found:
        mask = classes == c
        outline = mask & ~ndimage.binary_erosion(mask, cross)
        if int((mask & border).sum()) > CUT * int(outline.sum()):
            found[c].append("cut by the image's border")
    for outer, inner in (enclosing or {}).items():
        outline = ndimage.binary_dilation(classes == inner, cross) & (classes != inner)
        total = int(outline.sum())
        if total and int((outline & (classes != outer)).sum()) > OPEN * total:
            found[outer].append(f"does not enclose class {inner}")
    return found
