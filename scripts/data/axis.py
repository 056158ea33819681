"""The slice axis of volumes, decided once for a data set from the headers of all its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from scripts.data.readers import is_photograph, read_grid
from scripts.utils.threads import in_threads

__all__ = ["AXES", "THICK", "THICKEST", "Decision", "check_axis", "decide_axis", "read_grids", "slice_index"]

PLANES = ("sagittal", "coronal", "axial")  # planes of slices along the first, second and third axis of LPS
THICKEST = "thickest"
AXES = (*PLANES, THICKEST)
THICK = 2.0  # minimum ratio of slice thickness to pixel size of thick slices
SQUARE = 1.01  # tolerance for square pixels, as headers are rounded


class Decision(NamedTuple):
    """The slice axis of a data set.

    Attributes:
        axis: one of :data:`AXES`.
        reason: the evidence in the headers, as a part of a sentence.
    """

    axis: str
    reason: str


def check_axis(axis: Any) -> str:
    """The axis, if it is valid.

    Args:
        axis: one of :data:`AXES`: the plane of the slices, or ``thickest`` for volumes in different planes, each along
            its own thickest voxels.

    Raises:
        ValueError: for anything else.
    """
    if axis not in AXES:
        raise ValueError(f"slice_axis: expected one of {', '.join(AXES)}, found {axis!r}.")
    return str(axis)


def read_grids(images: Sequence[str]) -> list[tuple[Sequence[int], np.ndarray]]:
    """Input of :func:`decide_axis` for the volumes among some images.

    Photographs and unreadable files are ignored; loading a file reports its fault.
    """
    volumes = [image for image in images if not is_photograph(image)]
    return [grid for grid in in_threads(_try_grid, volumes) if grid is not None]


def decide_axis(grids: Sequence[tuple[Sequence[int], np.ndarray]]) -> Decision:
    """Decide the slice axis of all volumes.

    Thick slices are certain evidence: voxels at least twice as long as wide. If thick slices lie in different planes,
    each volume is cut along its own thick axis. Otherwise one plane is used for all. Two equal spacings in a volume are
    evidence for the third axis, because pixels are square; so are far fewer voxels along one axis. Without evidence the
    slices are along the last axis of the files.

    Args:
        grids: for each volume the numbers of voxels ``(x, y, z)`` and the affine ``[4, 4]`` to RAS mm.
    """
    volumes = [_canonical(*grid) for grid in grids]
    volumes = [(shape, spacing, last) for shape, spacing, last in volumes if 1 not in shape]
    if not volumes:
        return Decision(PLANES[2], "no volume has several slices")
    thick = Counter(axis for shape, spacing, _ in volumes if (axis := _thick(spacing)) is not None)
    other = Counter(axis for shape, spacing, _ in volumes if (axis := _likely(shape, spacing)) is not None)
    if len(thick) > 1:
        planes = ", ".join(f"{count} {PLANES[axis]}" for axis, count in thick.most_common())
        return Decision(THICKEST, f"thick slices lie in different planes ({planes})")
    for votes, why in ((thick, "have thick slices in this plane"), (other, "by the shape of their voxels or grid")):
        if votes:
            return _most(votes, len(volumes), why)
    return _most(Counter(last for *_, last in volumes), len(volumes), "store this axis last, without other evidence")


def slice_index(axis: str, shape: Sequence[int], affine: np.ndarray) -> int:
    """Index of a volume's slice axis.

    Args:
        axis: one of :data:`AXES`.
        shape: numbers of voxels ``(x, y, z)``.
        affine: ``[4, 4]`` from voxel indices to RAS mm.

    Returns:
        The only axis of length one, if there is one; else the axis of the plane or of ``thickest``.
    """
    if list(shape).count(1) == 1:
        return list(shape).index(1)
    if axis != THICKEST:
        return [int(world) for world in nib.io_orientation(affine)[:, 0]].index(PLANES.index(axis))
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    own = _thick(spacing)
    likely = own if own is not None else _likely(shape, spacing)
    return len(shape) - 1 if likely is None else likely


def _try_grid(path: str) -> tuple[Sequence[int], np.ndarray] | None:
    try:
        return read_grid(path)
    except (ValueError, OSError):
        return None


def _canonical(shape: Sequence[int], affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray, int]:
    """Voxels and spacing in the order of LPS, and the LPS axis that the file stores last."""
    world = [int(axis) for axis in nib.io_orientation(affine)[:, 0]]
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    order = [world.index(axis) for axis in range(3)]
    return tuple(int(shape[axis]) for axis in order), spacing[order], world[2]


def _thick(spacing: np.ndarray) -> int | None:
    _, middle, largest = np.sort(spacing)
    return int(np.argmax(spacing)) if largest >= THICK * middle else None


def _likely(shape: Sequence[int], spacing: np.ndarray) -> int | None:
    """The axis perpendicular to square pixels, else one with at most half as many voxels as the others, or None."""
    smallest, middle, largest = np.sort(spacing)
    if middle <= SQUARE * smallest and largest > SQUARE * middle:
        return int(np.argmax(spacing))
    if middle > SQUARE * smallest and largest <= SQUARE * middle:
        return int(np.argmin(spacing))
    fewest, second, _ = sorted(shape)
    return list(shape).index(fewest) if 2 * fewest <= second else None


def _most(votes: Counter[int], volumes: int, why: str) -> Decision:
    """The axis of most volumes; in case of a tie the last of LPS."""
    axis = max(votes, key=lambda axis: (votes[axis], axis))
    return Decision(PLANES[axis], f"{votes[axis]} of {volumes} volumes {why}")
