"""NIfTI: voxels by nibabel, their position as in ITK, and headers for maps on the same grid."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from monai.config import PathLike
from monai.data import NibabelReader
from monai.utils import ensure_tuple
from nibabel.nifti1 import Nifti1Header
from nibabel.nifti2 import Nifti2Header

from scripts.utils.files import check_readable

__all__ = ["LPS_TO_RAS", "NiftiReader", "check_affine", "geometry_header", "itk_affine", "open_nifti"]

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
SFORM = ("srow_x", "srow_y", "srow_z")
# all fields of the voxels' position; programs differ in which ones they use
GEOMETRY = ("pixdim", "qform_code", "sform_code", *QFORM, *SFORM, "xyzt_units")
STORED = "nifti_header"
UNITS = {1: 1e3, 3: 1e-3}  # metre and micron, in mm; all other codes count as mm


class NiftiReader(NibabelReader):
    """Reads one NIfTI file for ``LoadImaged``, with the spacing and orientation of ITK and its viewers.

    MONAI's reader uses the sform and rewrites it if pixdim differs. ITK uses the spacing from pixdim, the direction
    from the declared one of sform and qform, and the unit. For consistent headers both agree. The metadata also
    contains the file's original header for :func:`geometry_header`, because MONAI's transforms change its fields.
    """

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Open one file.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: for more than one file, or one that is unreadable, damaged or truncated, or has complex voxels.
        """
        files = ensure_tuple(data)
        if len(files) != 1:
            raise ValueError(f"expected one file per image, found {len(files)}: {', '.join(map(str, files))}.")
        self.filenames = files
        image = open_nifti(Path(files[0]))
        check_length(image)
        return image

    def _get_array_data(self, img: Any, filename: str) -> np.ndarray:
        array = super()._get_array_data(img, filename)
        if array.dtype.names:  # RGB24: three bytes a voxel
            array = np.stack([array[name] for name in array.dtype.names], axis=-1)
        return array

    def _get_meta_dict(self, img: Any) -> dict[str, Any]:
        stored = np.frombuffer(img.header.as_byteswapped("<").binaryblock, np.uint8).copy()
        return {**super()._get_meta_dict(img), STORED: stored}

    def _get_affine(self, img: Any) -> np.ndarray:
        try:
            return itk_affine(img.header)
        except ValueError as error:
            raise ValueError(f"{img.get_filename()}: {error}") from None


def open_nifti(path: Path) -> Any:
    """A NIfTI file whose header has been read and validated.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is unreadable, not NIfTI, or has no voxels or complex ones.
    """
    check_readable(path)
    try:
        image: Any = nib.load(path)
        dtype = image.get_data_dtype()
    except Exception:  # nibabel raises errors of many kinds for damaged headers
        raise ValueError(f"{path} is not an image of this type, or is damaged.") from None
    if not 1 <= len(image.shape) <= 7 or min(image.shape) < 1:
        raise ValueError(f"{path}: expected some voxels, found the shape {' x '.join(map(str, image.shape))}.")
    if dtype.kind == "c":
        raise ValueError(f"{path}: expected real voxels, found complex ones ({dtype}).")
    return image


def check_length(image: Any) -> None:
    """Check that a file has the voxels that its header claims, before memory is allocated.

    A compressed file is read to the checksum at its end; nibabel stops at the last voxel.

    Raises:
        ValueError: if it has not.
    """
    path = Path(image.get_filename())
    needed = int(image.dataobj.offset) + math.prod(image.shape) * image.dataobj.dtype.itemsize
    length = path.stat().st_size
    if path.suffix.lower() == ".gz":
        length = 0
        try:
            with gzip.open(path) as stream:
                while block := stream.read(1 << 20):
                    length += len(block)
        except (OSError, EOFError, zlib.error):
            raise ValueError(f"{path} is not an image of this type, or is damaged.") from None
    if length < needed:
        raise ValueError(
            f"{path} is damaged or truncated, or its header is wrong: it contains {length} bytes, the header claims "
            f"{needed}."
        )


def itk_affine(header: Nifti1Header) -> np.ndarray:
    """Affine of a NIfTI file's voxels in ITK, and so in 3D Slicer, ITK-SNAP and SimpleITK.

    ITK itself computes it from a header of a few voxels with the same fields, because it does not read NIfTI-2, which
    has the same fields. A sheared grid, which ITK refuses, is read by nibabel, in the header's unit.

    Args:
        header: header of NIfTI-1 or NIfTI-2.

    Returns:
        ``[4, 4]`` from voxel indices to RAS mm.

    Raises:
        ValueError: if a relevant field is not finite, or voxels have no volume.
    """
    for declared, names in ((True, ("pixdim",)), (header["qform_code"], QFORM), (header["sform_code"], SFORM)):
        for name in names if declared else ():
            values = np.atleast_1d(header[name])[:4]
            if not np.isfinite(values).all():
                raise ValueError(f"expected finite numbers in the header's {name}, found {values.tolist()}.")
    probe = Nifti1Header()
    for name in GEOMETRY:
        probe[name] = header[name]
    probe.set_data_shape((2, 2, 2))
    probe.set_data_dtype(np.uint8)
    probe["vox_offset"] = 352
    reader = sitk.ImageFileReader()
    with TemporaryDirectory() as folder:
        file = Path(folder, "header.nii")
        file.write_bytes(probe.binaryblock + bytes(4 + 8))
        reader.SetFileName(str(file))
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            affine = header.get_best_affine().astype(np.float64)
            affine[:3] *= UNITS.get(int(header["xyzt_units"]) & 7, 1.0)
            return check_affine(affine)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * np.asarray(reader.GetSpacing())
    affine[:3, 3] = reader.GetOrigin()
    return check_affine(LPS_TO_RAS @ affine)


def check_affine(affine: np.ndarray) -> np.ndarray:
    """The ``[4, 4]`` affine, if it is finite and gives voxels a volume.

    Raises:
        ValueError: if it has not.
    """
    if not np.isfinite(affine).all():
        raise ValueError(f"expected finite numbers for the place of the voxels, found {affine[:3].tolist()}.")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing == 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-6:
        raise ValueError(
            f"expected voxels of some volume, found spacing {' x '.join(f'{s:g}' for s in spacing)} mm along the axes "
            f"{(affine[:3, :3] / np.where(spacing > 0, spacing, 1)).T.round(3).tolist()}."
        )
    return affine


def geometry_header(meta: Mapping[str, Any]) -> Nifti1Header | None:
    """A header with the geometry of an image's file, so that every program places both alike.

    Args:
        meta: metadata of an image from :class:`NiftiReader`.

    Returns:
        NIfTI-1 or NIfTI-2 like the file, without its other fields; None if the image has another format.
    """
    if STORED not in meta:
        return None
    block = np.asarray(meta[STORED]).astype(np.uint8).tobytes()
    kind = Nifti2Header if len(block) == Nifti2Header.template_dtype.itemsize else Nifti1Header
    stored, header = kind(block, endianness="<", check=False), kind()
    for name in GEOMETRY:
        header[name] = stored[name]
    return header
