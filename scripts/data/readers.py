"""Reading of images by their suffix: NIfTI, MetaImage, NRRD and photographs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged
from monai.utils import SpaceKeys, ensure_tuple

from scripts.data.dicom.reader import DicomReader
from scripts.data.metaimage import read_header, read_voxels
from scripts.data.nifti import LPS_TO_RAS, NiftiReader, check_affine, itk_affine, open_nifti
from scripts.data.nrrd import check_nrrd_voxels, read_nrrd_header
from scripts.data.photographs import PhotographReader, is_photograph

__all__ = ["LoadImageVolumed", "MetaImageReader", "is_photograph", "read_grid", "shows_photograph", "voxel_files"]

VOLUME_SUFFIXES = (".mhd", ".mha")
NRRD = ".nrrd"
FEW = 16  # values of a label map

# ITK's warnings name no file and concern readable images, such as an sform without scale
sitk.ProcessObject.SetGlobalWarningDisplay(False)
# MONAI's own DICOM reader, which is not used, warns at every loader about a missing decoder
logging.getLogger("monai.data.nvimgcodec_pydicom_plugin").setLevel(logging.ERROR)


class MetaImageReader(ImageReader):
    """Reads MetaImage (``.mhd``, ``.mha``) for ``LoadImaged``.

    An array is ``[x, y, z]`` or, with several channels, ``[x, y, z, channel]``; its affine maps voxel indices to RAS
    millimetres, as in NIfTI (SimpleITK itself uses LPS).
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all file names end in a suffix of this format."""
        return all(Path(name).suffix.lower() in VOLUME_SUFFIXES for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Read one file.

        Returns:
            The array and its affine.

        Raises:
            FileNotFoundError: if the file, or a file of its voxels, is missing.
            ValueError: for more than one file, or a file that is unreadable, damaged or truncated.
        """
        files = ensure_tuple(data)
        if len(files) != 1:
            raise ValueError(f"expected one file per image, found {len(files)}: {', '.join(map(str, files))}.")
        _, affine = read_grid(files[0])
        return read_voxels(read_header(Path(files[0]))), affine

    def get_data(self, img: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, dict[str, Any]]:
        """The array and its metadata."""
        array, affine = img
        meta = {
            "affine": affine,
            "original_affine": affine.copy(),
            "space": SpaceKeys.RAS,
            "spatial_shape": np.asarray(array.shape[:3]),
            "original_channel_dim": -1 if array.ndim == 4 else float("nan"),
        }
        return array, meta


class NrrdReader(MetaImageReader):
    """Reads NRRD (``.nrrd``), as written by 3D Slicer, in the same way."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all file names end in this format's suffix."""
        return all(Path(name).suffix.lower() == NRRD for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> tuple[np.ndarray, np.ndarray]:
        """Read one file, see :meth:`MetaImageReader.read`."""
        files = ensure_tuple(data)
        if len(files) != 1:
            raise ValueError(f"expected one file per image, found {len(files)}: {', '.join(map(str, files))}.")
        shape, affine = read_grid(files[0])
        check_nrrd_voxels(Path(files[0]))
        try:
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(files[0]), imageIO="NrrdImageIO"))
        except RuntimeError:
            raise ValueError(f"{files[0]} is not an image of this type, or is damaged.") from None
        array = array.reshape(*shape[::-1], -1)
        array = array if array.shape[3] > 1 else array[..., 0]
        return array.transpose(2, 1, 0, *range(3, array.ndim)), affine


class LoadImageVolumed(LoadImaged):
    """``LoadImaged`` with the bundle's own readers.

    The reader is chosen by the file's suffix, or for a :class:`scripts.data.dicom.volume.DicomVolume` by its type. A
    NIfTI of two dimensions becomes a volume of one slice, like a photograph. In the metadata, ``few_values`` tells
    whether a file has a few whole values only, like a label map, ``photograph`` whether it is a photograph.

    Args:
        keys: keys of the paths to load.
        allow_missing_keys: whether a key may be absent.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        with warnings.catch_warnings():  # MONAI's own DICOM reader, which is not used, lacks a decoder
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            # expanding "~" would turn DICOM volumes into plain paths
            super().__init__(keys, allow_missing_keys=allow_missing_keys, expanduser=False)
        for reader in (NiftiReader(), MetaImageReader(), NrrdReader(), PhotographReader(), DicomReader()):
            self._loader.register(reader)

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        """Load every file of the dictionary, to ``[x, y, z]`` or ``[x, y, z, channel]``.

        Raises:
            ValueError: for a damaged file, or a NIfTI of one dimension.
        """
        d: dict[Hashable, Any] = super().__call__(data, reader)
        for key in self.key_iterator(d):
            if d[key].ndim < 2:
                raise ValueError(f"{data[key]}: expected an image of 2 or 3 dimensions, found {d[key].ndim}.")
            if d[key].ndim == 2:
                slices = d[key].as_tensor()[..., None]
                d[key] = MetaTensor(slices, meta={**d[key].meta, "spatial_shape": np.asarray(slices.shape)})
            d[key].meta["few_values"] = _few_values(d[key].numpy())
            d[key].meta["photograph"] = bool(getattr(data[key], "is_photograph", False)) or is_photograph(data[key])
        return d


def shows_photograph(image: MetaTensor) -> bool:
    """Whether an image is a photograph, whose pixels have no size in mm, also one in a DICOM file."""
    meta = image.meta
    return bool(meta.get("photograph")) or is_photograph(str(meta.get("filename_or_obj", "")))


def _few_values(array: np.ndarray) -> bool:
    """Whether an array has 2 to ``FEW`` values, all whole; a sample suffices to reject most images."""
    flat = array.ravel()
    for values in (flat[:: max(1, flat.size // 10_000)], flat):
        found = np.unique(values)
        if len(found) > FEW or not np.array_equal(found, np.round(found)):
            return False
    return len(found) > 1


def read_grid(path: str | Path) -> tuple[tuple[int, ...], np.ndarray]:
    """The grid of a NIfTI, MetaImage or NRRD volume, from its header only.

    Args:
        path: the file.

    Returns:
        The numbers of voxels ``(x, y, z)``, one slice for a 2-D image, and the affine ``[4, 4]`` to RAS mm.

    Raises:
        ValueError: if the file cannot be read or its header is invalid.
        FileNotFoundError: if it is missing.
    """
    path = Path(path)
    nrrd = path.suffix.lower() == NRRD
    if not nrrd and path.suffix.lower() not in VOLUME_SUFFIXES:
        image = open_nifti(path)
        return (*image.shape, 1, 1)[:3], itk_affine(image.header)
    shape: Sequence[int] = ()  # any axis of an NRRD may hold the channels: ITK knows which
    if nrrd:
        read_nrrd_header(path)
    else:
        shape = read_header(path).shape
    reader = sitk.ImageFileReader()
    reader.SetImageIO("NrrdImageIO" if nrrd else "MetaImageIO")  # ITK does not recognise upper-case suffixes
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
        dims = reader.GetDimension()
        if dims not in (2, 3):
            raise ValueError(f"expected an image of 2 or 3 dimensions, found {dims}.")
        shape = shape or reader.GetSize()
        affine = np.eye(4)  # a 2-D image lies in the plane z = 0
        affine[:dims, :dims] = np.reshape(reader.GetDirection(), (dims, dims)) * np.asarray(reader.GetSpacing())
        affine[:dims, 3] = reader.GetOrigin()
        return (*shape, 1)[:3], check_affine(LPS_TO_RAS @ affine)
    except RuntimeError:
        raise ValueError(f"{path} is not an image of this type, or is damaged.") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def voxel_files(path: Path) -> tuple[Path, ...]:
    """The files of a MetaImage header's voxels; none if they are in ``path`` itself.

    Raises:
        ValueError: if it is not a valid header.
        FileNotFoundError: if it, or a file that it names, is missing.
    """
    return read_header(path).others if path.suffix.lower() in VOLUME_SUFFIXES else ()
