"""Voxels of DICOM volumes, decoded by pydicom and its plug-ins."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from pydicom import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_rescale, pixel_array

from scripts.data.dicom.headers import functional_groups, quietly, read_dataset
from scripts.data.dicom.volume import Frame

__all__ = ["end_systole", "read_voxels"]


def read_voxels(frames: Sequence[Frame]) -> np.ndarray:
    """Read a volume, rescaled to its modality's values.

    Args:
        frames: its slices in the order of their positions, or a single photograph.

    Returns:
        ``[x, y, z]`` (column, row, slice), integers where all values are whole, else float32; a photograph as
        ``[x, y, 1, 3]``, 8 bits, RGB.

    Raises:
        ValueError: if pixels cannot be decoded, or a photograph does not have 8 bits.
    """
    slices: list[np.ndarray] = []
    for file, of_file in groupby(frames, key=lambda frame: frame.file):
        with quietly():
            try:
                dataset = read_dataset(file)
                slices += [_slice(dataset, frame) for frame in of_file]
            except Exception:  # of any type, depending on the decoder
                raise ValueError("its pixels cannot be decoded: damaged or truncated.") from None
    if any(plane.shape[:2] != frames[0].size for plane in slices):
        raise ValueError("its pixels do not have the size in the header.")
    volume = np.stack(slices, axis=2).swapaxes(0, 1)
    if not frames[0].colour:
        return _smallest(volume)
    if volume.dtype != np.uint8:
        raise ValueError(f"expected a photograph of 8 bits, found {volume.dtype}.")
    return volume


def end_systole(phases: Sequence[Sequence[Frame]]) -> int:
    """Estimate the phase of end systole: the one whose images correlate least with the first phase's.

    The first phase follows the R wave, the end of diastole; the heart differs most from it at maximum contraction. The
    middle half of the field of view, around the heart, is compared.

    Args:
        phases: the slices of each phase.

    Returns:
        index of the phase.
    """
    first, *others = (_middle(read_voxels(frames)) for frames in phases)
    return 1 + int(np.argmin([np.corrcoef(first, other)[0, 1] for other in others]))


def _slice(dataset: Dataset, frame: Frame) -> np.ndarray:
    """One image, ``[row, column]`` or ``[row, column, 3]``."""
    if not frame.colour:
        pixels = pixel_array(dataset, index=frame.number)
        if "PerFrameFunctionalGroupsSequence" in dataset:
            transformation = functional_groups(dataset, frame.number).get("PixelValueTransformationSequence")
            values = pixels if transformation is None else apply_rescale(pixels, transformation)
        else:
            values = apply_modality_lut(pixels, dataset)
        if dataset.PhotometricInterpretation == "MONOCHROME1" and dataset.get("Modality") != "CT":
            # the smallest value is the brightest; Hounsfield units keep their meaning
            values = -(values.astype(np.int64) if values.dtype.kind in "iu" else values)
        return values
    pixels = pixel_array(dataset, index=frame.number)
    if dataset.PhotometricInterpretation != "PALETTE COLOR":
        return pixels
    colours = apply_color_lut(pixels, dataset)
    return colours if colours.dtype == np.uint8 else (colours >> 8).astype(np.uint8)


def _smallest(volume: np.ndarray) -> np.ndarray:
    """The volume as integers if lossless, with 16 bits if sufficient; else as float32."""
    low, high = volume.min(), volume.max()
    if not np.array_equal(volume, np.round(volume)):
        return volume.astype(np.float32)
    for kind in (np.int16, np.uint16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return volume.astype(kind)
    return volume.astype(np.float32)


def _middle(volume: np.ndarray) -> np.ndarray:
    x, y = (n // 4 for n in volume.shape[:2])
    return volume[x : volume.shape[0] - x, y : volume.shape[1] - y].ravel().astype(np.float64)
