"""From images to volumes: grouping into stacks, order of slices, phases of the heart, and geometry."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scripts.data.dicom.volume import Frame
from scripts.data.nifti import LPS_TO_RAS

__all__ = ["MINIMUM", "Phases", "acquisition", "affine_of", "by_orientation", "phases_of", "positions_along_normal"]

MINIMUM = 3
"""Minimum number of positions of a stack; fewer are localizers or long-axis views."""

_GAPS = 0.01  # tolerance of the distances of slices, as a share of the median, or
_ROUNDING = 0.02  # in mm, as headers round positions
_SAME = 0.05  # positions nearer than this share of a pixel are equal
_COSINES = 1e-3


class Phases(NamedTuple):
    """The phases of a stack.

    Attributes:
        frames: the slices of each phase in the order of their positions, by the phase's number from 1.
        lacking: number of missing slices by phase.
        total: number of phases, including incomplete ones.
        times: the first and the last trigger time in ms, if known.
    """

    frames: dict[int, list[Frame]]
    lacking: dict[int, int]
    total: int
    times: tuple[float, float] | None


def by_orientation(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Group images with the same orientation."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            if np.allclose(frame.orientation, group[0].orientation, rtol=0, atol=_COSINES):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def acquisition(frame: Frame) -> tuple:
    """Common attributes, except orientation, of the slices of a stack of single-slice series."""
    return frame.study, frame.reference, frame.size, np.round(frame.spacing, 4).tobytes(), frame.technique


def positions_along_normal(frames: Sequence[Frame]) -> np.ndarray:
    """Position of each image along the normal of its plane, in mm: the sort key of slices.

    Raises:
        ValueError: if the orientation is not a pair of perpendicular unit vectors.
    """
    return np.array([frame.position for frame in frames]) @ _axes(frames[0])[2]


def phases_of(frames: Sequence[Frame]) -> Phases:
    """Split the images of a stack into phases.

    Phases are identified by the temporal index if the headers have it, else by the trigger time: the first image of
    each slice is phase 1, the second phase 2, because the heart rate differs between breath-holds.

    Args:
        frames: images of one orientation.

    Raises:
        ValueError: if these images do not form a stack, with the reason.
    """
    sizes = Counter(frame.size for frame in frames)
    if len(sizes) > 1:
        named = ", ".join(f"{count} of {rows} x {columns}" for (rows, columns), count in sorted(sizes.items()))
        raise ValueError(f"images of different sizes: {named}.")
    if not np.allclose([frame.spacing for frame in frames], frames[0].spacing, rtol=1e-4):
        raise ValueError("images of different pixel spacing.")
    if min(frames[0].spacing) <= 0:
        raise ValueError("a pixel spacing that is not positive.")
    along = positions_along_normal(frames)
    places = _places(along, _SAME * min(frames[0].spacing))
    counts = np.bincount(places)
    order = np.lexsort((along,))
    if counts.max() == 1:
        return Phases({1: [frames[i] for i in order]}, {}, 1, None)
    keys = _phase_keys(frames, places, counts)
    phases: dict[int, list[Frame]] = {}
    for i in order:
        phases.setdefault(int(keys[i]), []).append(frames[i])
    lacking = {p: len(counts) - len(of) for p, of in sorted(phases.items()) if len(of) < len(counts)}
    times = [frame.trigger for frame in frames if frame.trigger is not None]
    return Phases(
        {p: of for p, of in sorted(phases.items()) if p not in lacking},
        lacking,
        len(phases),
        (min(times), max(times)) if times else None,
    )


def affine_of(frames: Sequence[Frame]) -> np.ndarray:
    """The affine of a stack, as defined in PS3.3, C.7.6.2.1.1.

    Args:
        frames: slices in the order of their positions along the normal.

    Returns:
        ``[4, 4]``, from voxel indices ``[x, y, z]`` (column, row, slice) to RAS millimetres.

    Raises:
        ValueError: if the slices are unevenly spaced or shifted against each other.
    """
    across, down, normal = _axes(frames[0])
    positions = np.array([frame.position for frame in frames])
    along = positions @ normal
    gap = frames[0].thickness
    if len(frames) > 1:
        gaps = np.diff(along)
        _check_gaps(gaps)
        gap = float((along[-1] - along[0]) / len(gaps))
        shift = np.abs(positions - positions[0] - np.outer(along - along[0], normal)).max()
        if shift > 0.5 * min(frames[0].spacing):
            raise ValueError(f"slices shifted by up to {shift:.2f} mm against each other, as by a gantry tilt.")
    affine = np.eye(4)
    rows, columns = frames[0].spacing
    affine[:3, :3] = np.stack([across * columns, down * rows, normal * gap], axis=1)
    affine[:3, 3] = positions[0]
    return LPS_TO_RAS @ affine


def _axes(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit vectors along a row, down a column and along the normal."""
    across, down = np.reshape(frame.orientation, (2, 3))
    products = [across @ across, down @ down, across @ down]
    if not np.allclose(products, [1, 1, 0], rtol=0, atol=_COSINES):
        raise ValueError("an orientation that is not a pair of perpendicular unit vectors.")
    return across, down, np.cross(across, down)


def _places(along: np.ndarray, tolerance: float) -> np.ndarray:
    """Index of each image's position among the different ones, ascending from 0."""
    order = np.argsort(along, kind="stable")
    steps = np.diff(along[order], prepend=along[order[0]]) > tolerance
    places = np.empty(len(along), dtype=int)
    places[order] = np.cumsum(steps)
    return places


def _phase_keys(frames: Sequence[Frame], places: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Number of each image's phase, from 1.

    Raises:
        ValueError: if the headers do not distinguish images of one position.
    """
    temporal = [frame.temporal for frame in frames if frame.temporal is not None]
    if len(temporal) == len(frames) and _distinct(temporal, places):
        return np.unique(np.array(temporal), return_inverse=True)[1].ravel() + 1
    trigger = [frame.trigger for frame in frames if frame.trigger is not None]
    if len(trigger) < len(frames) or not _distinct(trigger, places):
        raise ValueError(
            f"up to {counts.max()} images at one position with neither different temporal indices nor trigger times."
        )
    times = np.array(trigger)
    ranks = np.empty(len(frames), dtype=int)
    for place in range(len(counts)):
        here = np.flatnonzero(places == place)
        ranks[here[np.argsort(times[here])]] = np.arange(len(here))
    if counts.min() == counts.max():
        return ranks + 1
    # some images are missing: the times of the complete slices identify them, if these agree
    full = np.isin(places, np.flatnonzero(counts == counts.max()))
    middle = np.array([np.median(times[full & (ranks == rank)]) for rank in range(counts.max())])
    nearest = np.abs(times[:, None] - middle).argmin(axis=1)
    if not np.array_equal(nearest[full], ranks[full]) or not _distinct(nearest.tolist(), places):
        raise ValueError(f"{counts.min()} to {counts.max()} images at one position: which phases lack one is unknown.")
    return nearest + 1


def _distinct(keys: Sequence[float], places: np.ndarray) -> bool:
    """Whether no two images at one position have the same key."""
    return len(set(zip(keys, places.tolist(), strict=True))) == len(keys)


def _check_gaps(gaps: np.ndarray) -> None:
    """Refuse slices that are not evenly spaced.

    Raises:
        ValueError: if they are not, with the smallest and the largest distance.
    """
    usual = float(np.median(gaps))
    if np.abs(gaps - usual).max() <= max(_GAPS * usual, _ROUNDING):
        return
    least = float(gaps.min())
    steps = gaps / least
    if np.allclose(steps, np.round(steps), atol=0.02):
        missing = int(np.round(steps).sum()) - len(gaps)
        what = "a slice is missing" if missing == 1 else f"{missing} slices are missing"
    else:
        what = "uneven"
    raise ValueError(f"distances of slices from {least:.2f} to {gaps.max():.2f} mm: {what}.")


def describe_phases(phases: Phases) -> str:
    """Description of the phases for a message."""
    times = "" if phases.times is None else f", trigger times {phases.times[0]:g} to {phases.times[1]:g} ms"
    return f"{phases.total} phases{times}"


def lacking_lines(lacking: Mapping[int, int]) -> list[str]:
    """One line for each phase that lacks slices."""
    return [f"phase {phase} lacks {n} slice{'s' if n > 1 else ''}." for phase, n in lacking.items()]
