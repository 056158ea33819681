"""Reading images: NIfTI, MetaImage and NRRD volumes and photographs, which the suffix of a file tells apart."""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk  # noqa: N813
from monai.config import KeysCollection, PathLike
from monai.data import ImageReader, MetaTensor
from monai.transforms import LoadImaged
from monai.utils import SpaceKeys, ensure_tuple
from PIL import Image, ImageOps

from scripts.data.dicom.reader import DicomReader
from scripts.data.nifti import LPS_TO_RAS, NiftiReader, check_affine

__all__ = ["LoadVolumed", "SimpleITKReader", "is_photograph", "voxel_file"]

JPEG_SUFFIXES = (".jpg", ".jpeg")
PHOTOGRAPH_SUFFIXES = (".png", *JPEG_SUFFIXES)
VOLUME_SUFFIXES = (".mhd", ".mha", ".nrrd")

# ITK's warnings name no file and speak of what is read all the same, such as an sform without scale
sitk.ProcessObject.SetGlobalWarningDisplay(False)


class SimpleITKReader(ImageReader):
    """Reads MetaImage (``.mhd``, ``.mha``), NRRD (``.nrrd``) and 8-bit grey or RGB ``.png`` and ``.jpg``.

    An array is ``[x, y, z]`` or, with several channels, ``[x, y, z, channel]``; its affine maps voxel indices to RAS
    millimetres, as NIfTI's does (SimpleITK itself speaks LPS). A photograph is a volume of one slice with pixels of
    unit size whose rows run to the left and columns to the back: nothing turns it on its way to LPS. So everything
    behind the reader knows volumes only.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether all file names end in a suffix of these formats."""
        return all(_ends_in(name, (*VOLUME_SUFFIXES, *PHOTOGRAPH_SUFFIXES)) for name in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> sitk.Image:
        """Read one file.

        Raises:
            FileNotFoundError: when the file, or the one that holds a header's voxels, is missing.
            ValueError: for more than one file, a file that is damaged or cut short, or a photograph that is not
                8-bit grey or RGB.
        """
        files = ensure_tuple(data)
        if len(files) != 1:
            raise ValueError(f"expected one file per image, found {len(files)}: {', '.join(map(str, files))}.")
        path = Path(files[0])
        image = _read(path, **kwargs)
        if is_photograph(path):
            channels = image.GetNumberOfComponentsPerPixel()
            bits = 8 * image.GetSizeOfPixelComponent()
            if bits != 8 or channels not in (1, 3):
                raise ValueError(
                    f"{path}: expected an 8-bit grey or RGB image, found {bits} bits and {channels} channels."
                )
            # whatever resolution a camera wrote into the file says nothing about the patient
            image.SetSpacing((1.0,) * image.GetDimension())
            image.SetOrigin((0.0,) * image.GetDimension())
        return image

    def get_data(self, img: sitk.Image) -> tuple[np.ndarray, dict[str, Any]]:
        """The array and its metadata.

        Raises:
            ValueError: for an image of other than two or three dimensions.
        """
        dims, channels = img.GetDimension(), img.GetNumberOfComponentsPerPixel()
        if dims not in (2, 3):
            raise ValueError(f"expected an image of 2 or 3 dimensions, found {dims}.")
        array = sitk.GetArrayFromImage(img)  # [z, y, x] and, if several, channels
        if dims == 2:
            array = array[None]
        array = array.transpose(2, 1, 0, *range(3, array.ndim))
        affine = _affine(img)
        meta = {
            "affine": affine,
            "original_affine": affine.copy(),
            "space": SpaceKeys.RAS,
            "spatial_shape": np.asarray(array.shape[:3]),
            "original_channel_dim": -1 if channels > 1 else float("nan"),
        }
        return array, meta


class LoadVolumed(LoadImaged):
    """``LoadImaged`` by :class:`SimpleITKReader`, :class:`scripts.data.nifti.NiftiReader` and :class:`DicomReader`.

    The suffix decides, or that an image is a :class:`scripts.data.dicom.volume.DicomVolume`. A NIfTI of two dimensions
    becomes a volume of one slice, as photographs are.

    Args:
        keys: keys of the paths to load.
        allow_missing_keys: whether a key may be absent.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        with warnings.catch_warnings():  # MONAI's own reader of DICOM, which is not used, misses a decoder
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            # expanding "~" would make plain paths of DICOM volumes
            super().__init__(keys, allow_missing_keys=allow_missing_keys, expanduser=False)
        self._loader.register(NiftiReader())
        self._loader.register(SimpleITKReader())
        self._loader.register(DicomReader())

    def __call__(self, data: Mapping[Hashable, Any], reader: Any = None) -> dict[Hashable, Any]:
        """Load every file of the dictionary, to ``[x, y, z]`` or ``[x, y, z, channel]``.

        Raises:
            ValueError: for a damaged file, or a NIfTI of one dimension.
        """
        for key in self.key_iterator(dict(data)):
            _check_gzip(Path(data[key]))
        d: dict[Hashable, Any] = super().__call__(data, reader)
        for key in self.key_iterator(d):
            if d[key].ndim < 2:
                raise ValueError(f"{data[key]}: expected an image of 2 or 3 dimensions, found {d[key].ndim}.")
            if d[key].ndim == 2:
                slices = d[key].as_tensor()[..., None]
                d[key] = MetaTensor(slices, meta={**d[key].meta, "spatial_shape": np.asarray(slices.shape)})
        return d


def is_photograph(path: PathLike) -> bool:
    """Whether a file is a photograph, whose pixels have no size in mm, by its suffix."""
    return _ends_in(path, PHOTOGRAPH_SUFFIXES)


def voxel_file(path: Path) -> Path | None:
    """The file that holds the voxels of a MetaImage header; None where ``path`` itself holds them.

    Raises:
        FileNotFoundError: when it is missing.
    """
    if path.suffix.lower() != ".mhd":
        return None
    found = re.search(r"^\s*ElementDataFile\s*=\s*(\S.*?)\s*$", path.read_text(errors="replace"), re.MULTILINE)
    if not found or found[1] in ("LOCAL", "LIST"):
        return None
    if not (voxels := path.parent / found[1]).is_file():
        raise FileNotFoundError(f"{path}: the file of its voxels, '{found[1]}', is missing.")
    return voxels


def _ends_in(path: PathLike, suffixes: Sequence[str]) -> bool:
    """Whether a path's last suffix is one of these; MONAI's ``is_supported_format`` finds jpg in ``x.jpg.nii.gz``."""
    return Path(path).suffix.lower() in suffixes


def _read(path: Path, **kwargs: Any) -> sitk.Image:
    """Read a file, or say in one line why not: ITK's own reasons name no data file and are often wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    voxels = voxel_file(path)
    if _ends_in(path, (".nrrd",)):
        _check_attached(path)
    try:
        if _ends_in(path, JPEG_SUFFIXES):
            # where a JPEG is cut short, ITK makes up the rest
            with Image.open(path) as file:
                # masks are drawn on the picture as it is shown, which a camera that was turned notes beside the pixels
                array = np.asarray(ImageOps.exif_transpose(file))
            return sitk.GetImageFromArray(array, isVector=array.ndim == 3)
        return sitk.ReadImage(str(path), **kwargs)
    except (RuntimeError, OSError):
        together = f" (with '{voxels.name}')" if voxels else ""
        raise ValueError(f"{path}{together} is no image of this type, damaged or cut short.") from None


def _check_attached(path: Path) -> None:
    """Refuse an NRRD whose voxels lie in other files: the cache would not see them change."""
    with path.open("rb") as stream:
        header = stream.read(1 << 16).split(b"\n\n")[0].split(b"\r\n\r\n")[0]
    if re.search(rb"(?mi)^data ?file\s*:", header):
        raise ValueError(f"{path}: its voxels lie in another file: save it as one NRRD.")


def _check_gzip(path: Path) -> None:
    """Read a compressed file to its end, where its checksum is: nibabel stops at the last voxel and never sees it."""
    if not _ends_in(path, (".gz",)) or not path.is_file():
        return
    try:
        with gzip.open(path) as stream:
            while stream.read(1 << 20):
                pass
    except (OSError, EOFError, zlib.error):
        raise ValueError(f"{path} is no image of this type, damaged or cut short.") from None


def _affine(image: sitk.Image) -> np.ndarray:
    """``[4, 4]`` from voxel indices to RAS millimetres; a 2-D image lies in the plane z = 0."""
    dims = image.GetDimension()
    affine = np.eye(4)
    affine[:dims, :dims] = np.reshape(image.GetDirection(), (dims, dims)) * np.asarray(image.GetSpacing())
    affine[:dims, 3] = image.GetOrigin()
    return check_affine(LPS_TO_RAS @ affine)
