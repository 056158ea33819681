"""Along which axis volumes are cut into slices: decided once for a data set, from the headers of all its files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from scripts.data.readers import is_photograph, read_grid
from scripts.utils.threads import in_threads

__all__ = ["AXES", "THICK", "THICKEST", "Decision", "check_axis", "decide_axis", "read_grids", "slice_index"]

PLANES = ("sagittal", "coronal", "axial")  # of slices that follow each other along the first, second, third axis of LPS
THICKEST = "thickest"
AXES = (*PLANES, THICKEST)
THICK = 2.0  # a voxel this many times as long as wide is a slice's
SQUARE = 1.01  # pixels are square, as far as headers are rounded


class Decision(NamedTuple):
    """How the volumes of a data set are cut.

    Attributes:
        axis: one of :data:`AXES`.
        reason: what in the headers speaks for it, as half a sentence.
    """

    axis: str
    reason: str


def check_axis(axis: Any) -> str:
    """The axis itself.

    Args:
        axis: one of :data:`AXES`: the plane of the slices, or ``thickest``, for volumes that were acquired in
            different planes: each along its own thickest voxels.

    Raises:
        ValueError: for anything else.
    """
    if axis not in AXES:
        raise ValueError(f"slice_axis: expected one of {', '.join(AXES)}, found {axis!r}.")
    return str(axis)


def read_grids(images: Sequence[str]) -> list[tuple[Sequence[int], np.ndarray]]:
    """What :func:`decide_axis` needs of the volumes among some images.

    Photographs have one slice, and a file that cannot be read has no say: whoever loads it reports it.
    """
    volumes = [image for image in images if not is_photograph(image)]
    return [grid for grid in in_threads(_try_grid, volumes) if grid is not None]


def decide_axis(grids: Sequence[tuple[Sequence[int], np.ndarray]]) -> Decision:
    """Decide along which axis to cut all volumes.

    Thick slices are unmistakable: voxels at least twice as long as wide. Where they lie in different planes, which
    whole-body directions name differently although each is what the scanner acquired, every volume is cut along its
    own. Otherwise one plane counts for all. Volumes with two equal spacings speak for the third axis, as pixels are
    square; so do volumes of far fewer voxels along one axis. Where nothing speaks for any, files keep slices last.

    Args:
        grids: of each volume the numbers of voxels ``(x, y, z)`` and the affine ``[4, 4]`` to RAS mm.
    """
    volumes = [_canonical(*grid) for grid in grids]
    volumes = [(shape, spacing, last) for shape, spacing, last in volumes if 1 not in shape]
    if not volumes:
        return Decision(PLANES[2], "there is no volume of several slices")
    thick = Counter(axis for shape, spacing, _ in volumes if (axis := _thick(spacing)) is not None)
    other = Counter(axis for shape, spacing, _ in volumes if (axis := _likely(shape, spacing)) is not None)
    if len(thick) > 1:
        planes = ", ".join(f"{count} {PLANES[axis]}" for axis, count in thick.most_common())
        return Decision(THICKEST, f"thick slices lie in different planes ({planes})")
    for votes, why in ((thick, "have thick slices in this plane"), (other, "by the shape of their voxels or grid")):
        if votes:
            return _most(votes, len(volumes), why)
    return _most(Counter(last for *_, last in volumes), len(volumes), "store this axis last, and nothing else tells")


def slice_index(axis: str, shape: Sequence[int], affine: np.ndarray) -> int:
    """Which axis of a volume counts its slices.

    Args:
        axis: one of :data:`AXES`.
        shape: numbers of voxels ``(x, y, z)``.
        affine: ``[4, 4]`` from voxel indices to RAS mm.

    Returns:
        The only axis of a single voxel, as there is no other slice; else the one of the plane, or of ``thickest``.
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
    """Voxels and spacing in the order of LPS, and which of its axes the file stores last."""
    world = [int(axis) for axis in nib.io_orientation(affine)[:, 0]]
    spacing = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    order = [world.index(axis) for axis in range(3)]
    return tuple(int(shape[axis]) for axis in order), spacing[order], world[2]


def _thick(spacing: np.ndarray) -> int | None:
    _, middle, largest = np.sort(spacing)
    return int(np.argmax(spacing)) if largest >= THICK * middle else None


def _likely(shape: Sequence[int], spacing: np.ndarray) -> int | None:
    """The axis that square pixels leave over, else one of at most half as many voxels as the others; None: neither."""
    smallest, middle, largest = np.sort(spacing)
    if middle <= SQUARE * smallest and largest > SQUARE * middle:
        return int(np.argmax(spacing))
    if middle > SQUARE * smallest and largest <= SQUARE * middle:
        return int(np.argmin(spacing))
    fewest, second, _ = sorted(shape)
    return list(shape).index(fewest) if 2 * fewest <= second else None


def _most(votes: Counter[int], volumes: int, why: str) -> Decision:
    """The axis of most volumes; among equals the last of LPS."""
    axis = max(votes, key=lambda axis: (votes[axis], axis))
    return Decision(PLANES[axis], f"{votes[axis]} of {volumes} volumes {why}")
