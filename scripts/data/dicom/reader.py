"""DICOM volumes for ``LoadImaged``; the decoders' packages are imported at the first read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import SpaceKeys, ensure_tuple

from scripts.data.dicom.volume import SOURCE, DicomVolume, dicom_module

__all__ = ["DicomReader"]


class DicomReader(ImageReader):
    """Reads :class:`scripts.data.dicom.volume.DicomVolume` with the interface of the other readers.

    An array is ``[x, y, z]``, or ``[x, y, 1, 3]`` for a photograph; its affine maps voxel indices to RAS millimetres.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether these are DICOM volumes, independent of their names."""
        return all(isinstance(name, DicomVolume) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> DicomVolume:
        """Select one volume; :meth:`get_data` reads its files.

        Raises:
            ValueError: for more than one.
        """
        volumes = ensure_tuple(data)
        if len(volumes) != 1:
            raise ValueError(f"expected one DICOM volume per image, found {len(volumes)}.")
        return volumes[0]

    def get_data(self, img: DicomVolume) -> tuple[np.ndarray, dict[str, Any]]:
        """The array and its metadata.

        Raises:
            ValueError: if the packages are not installed, the series is refused, or its files cannot be decoded.
        """
        if img.fault:
            raise ValueError(img.fault)
        try:
            array = dicom_module("pixels").read_voxels(img.frames)
        except ValueError as error:
            raise ValueError(f"{img}: {error}") from None
        meta = {
            "affine": img.affine.copy(),
            "original_affine": img.affine.copy(),
            "space": SpaceKeys.RAS,
            "spatial_shape": np.asarray(array.shape[:3]),
            SOURCE: img,  # for DICOM SEG
            "original_channel_dim": -1 if array.ndim == 4 else float("nan"),
        }
        return array, meta
