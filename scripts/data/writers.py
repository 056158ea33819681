"""Atomic writing of label maps and probability maps: NIfTI, MetaImage or PNG by the suffix."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from monai.config import KeysCollection
from monai.data import NibabelWriter
from monai.data.folder_layout import default_name_formatter
from monai.transforms import SaveImaged
from monai.utils import convert_to_numpy
from PIL import Image

from scripts.data.dicom.volume import SOURCE, DicomVolume, dicom_module
from scripts.data.layouts.custom import name_of
from scripts.data.metaimage import read_header, read_voxels
from scripts.data.nifti import LPS_TO_RAS, geometry_header
from scripts.utils.errors import one_line

__all__ = ["OUTPUT_SUFFIXES", "SaveImageVolumed", "VolumeWriter", "segmentation_writer"]

logger = logging.getLogger(__name__)

OUTPUT_SUFFIXES = (".nii.gz", ".nii", ".mha", ".mhd", ".png", ".dcm")


class VolumeWriter(NibabelWriter):
    """Writer for ``SaveImaged``: the suffix selects the format, and the grid is exactly the image's.

    A NIfTI map of a NIfTI image has the image's own sform, qform, pixdim and units, so that all programs place both
    alike. Between other formats the position is the one that ITK reads. Writing is atomic, for ``.mhd`` including the
    file of the voxels. A volume of a single slice remains a volume; MONAI drops trailing axes of length one.

    Args:
        output_dtype: type of the voxels; ignored with ``label_values``.
        label_values: value of each class, in the order of the classes; None: the classes' numbers.
        failures: list for the one-line reasons of failures, which ``SaveImaged`` hides in a traceback.
        segmentation: writes DICOM SEG, see :func:`segmentation_writer`.
        **kwargs: further arguments of :class:`monai.data.ImageWriter`.
    """

    def __init__(
        self,
        output_dtype: Any = np.float32,
        label_values: Sequence[float] | None = None,
        failures: list[str] | None = None,
        segmentation: Callable[..., None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(output_dtype=output_dtype, **kwargs)
        self.segmentation = segmentation
        self.source: DicomVolume | None = None
        self.failures = [] if failures is None else failures
        self.header: nib.Nifti1Header | None = None
        self.values = None if label_values is None else np.asarray(label_values)
        if self.values is not None:
            whole = np.array_equal(self.values, np.round(self.values)) and self.values.min() >= 0
            self.output_dtype = np.min_scalar_type(int(self.values.max())) if whole else np.float32

    def set_data_array(
        self, data_array: Any, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: Any
    ) -> None:
        """Set the array, channels last; see :meth:`monai.data.NibabelWriter.set_data_array`."""
        super().set_data_array(data_array, channel_dim=channel_dim, squeeze_end_dims=False, **kwargs)
        if squeeze_end_dims and self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]
        if self.values is not None:
            self.data_obj = self.values[convert_to_numpy(self.data_obj).astype(np.intp)]

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Set the affine without rounding errors of the inverse transforms; see :meth:`NibabelWriter.set_metadata`."""
        super().set_metadata(meta_dict, resample=resample, **options)
        self.source = (meta_dict or {}).get(SOURCE)
        original = convert_to_numpy((meta_dict or {}).get("original_affine", self.affine))
        if np.allclose(convert_to_numpy(self.affine), original):
            self.affine = original
            self.header = geometry_header(meta_dict or {})

    def write(self, filename: str | os.PathLike[str], verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write to a hidden folder next to the file, then rename; see :meth:`monai.data.NibabelWriter.write`.

        Raises:
            ValueError: if the file cannot be written, for example on a full disk, or the format does not fit: PNG for
                more than one slice or channel, or values beyond 8 bits.
        """
        target = Path(filename)
        try:
            self._write(target)
        except (OSError, RuntimeError, ValueError) as error:
            self.failures.append(f"{target} cannot be written: {one_line(error)}")
            raise ValueError(self.failures[-1]) from None
        if verbose:
            logger.info("Wrote %s", target)

    def _write(self, target: Path) -> None:
        with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            temporary = Path(folder, target.name)
            if target.name.lower().endswith((".nii", ".nii.gz")):
                nib.save(self._nifti(), temporary)
            elif target.suffix.lower() == ".dcm":
                self._write_segmentation(temporary)
            elif target.suffix.lower() == ".png":
                # by Python's own stream: ITK reports no error on a full disk
                with open(temporary, "wb") as stream:
                    Image.fromarray(self._pixels()).save(stream, format="PNG")
            else:
                # few programs read compressed voxels in a separate file
                sitk.WriteImage(self._image(), str(temporary), target.suffix.lower() != ".mhd")
                try:
                    read_voxels(read_header(temporary))  # ITK reports no error for small compressed files
                except (ValueError, FileNotFoundError):
                    raise OSError("the written file cannot be read, as on a full disk.") from None
            # The header is renamed last: if it exists, so do its voxels.
            for file in sorted(Path(folder).iterdir(), key=lambda file: file.name == target.name):
                os.replace(file, target.parent / file.name)

    def _write_segmentation(self, target: Path) -> None:
        """The array ``[x, y, z]`` of classes as DICOM SEG."""
        if self.segmentation is None or self.source is None:
            raise ValueError("DICOM SEG supports only label maps of DICOM images: choose another output_ext.")
        self.segmentation(convert_to_numpy(self.data_obj), self.source, target)

    def _nifti(self) -> nib.Nifti1Image:
        """The array ``[x, y, z]`` or ``[x, y, z, channel]`` as NIfTI."""
        array = convert_to_numpy(self.data_obj).astype(self.output_dtype)
        if self.header is None:
            image = nib.Nifti1Image(array, convert_to_numpy(self.affine))
            image.set_sform(image.affine, code=1)
            image.set_qform(image.affine, code=1)
            image.header.set_xyzt_units("mm")
            return image
        self.header.set_data_dtype(array.dtype)
        kind = nib.Nifti2Image if isinstance(self.header, nib.Nifti2Header) else nib.Nifti1Image
        return kind(array, None, self.header)

    def _pixels(self) -> np.ndarray:
        """The array ``[x, y, 1]`` as rows of pixels."""
        array = convert_to_numpy(self.data_obj).astype(self.output_dtype)
        if array.ndim != 3 or array.shape[2] != 1 or array.dtype != np.uint8:
            raise ValueError(f"PNG supports one slice of 8 bits, found {array.dtype} {array.shape}.")
        return np.ascontiguousarray(array[..., 0].T)

    def _image(self) -> sitk.Image:
        """The array ``[x, y, z]`` or ``[x, y, z, channel]`` as an image."""
        array = convert_to_numpy(self.data_obj).astype(self.output_dtype)
        image = sitk.GetImageFromArray(array.transpose(2, 1, 0, *range(3, array.ndim)), isVector=array.ndim == 4)
        affine = LPS_TO_RAS @ convert_to_numpy(self.affine).astype(np.float64)  # its own inverse: RAS -> LPS
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        return image


class SaveImageVolumed(SaveImaged):
    """``SaveImaged`` with :class:`VolumeWriter`, in the images' folder structure.

    Args:
        keys: keys of channel-first label maps or probability maps.
        output_ext: one of :data:`OUTPUT_SUFFIXES`. PNG supports label maps of single slices, such as photographs.
        label_values: see :class:`VolumeWriter`; for label maps only, but not as DICOM SEG, whose segments are named.
        segmentation: see :func:`segmentation_writer`.
        **options: of ``SaveImaged``.

    Raises:
        ValueError: for another suffix, or if ``output_dir`` is the folder of the images: a map ``NAME_seg`` could
            replace a label there, and the next training would use it as one.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_ext: str = ".nii.gz",
        label_values: Sequence[float] | None = None,
        segmentation: Callable[..., None] | None = None,
        **options: Any,
    ) -> None:
        if output_ext not in OUTPUT_SUFFIXES:
            raise ValueError(f"output_ext: expected one of {', '.join(OUTPUT_SUFFIXES)}, found '{output_ext}'.")
        root = options.get("data_root_dir")
        if root and os.path.realpath(options.get("output_dir", ".")) == os.path.realpath(root):
            raise ValueError(f"output_dir '{root}' is the folder of the images: choose another, or one below it.")
        self.failures: list[str] = []
        if output_ext == ".dcm":
            label_values = None
        writer: Any = partial(
            VolumeWriter, label_values=label_values, failures=self.failures, segmentation=segmentation
        )
        # the map's metadata has its path
        options = {"separate_folder": False, "savepath_in_metadict": True, "output_name_formatter": _name, **options}
        super().__init__(keys, output_ext=output_ext, writer=writer, **options)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write every map of the dictionary.

        Raises:
            ValueError: for a volume of several slices as PNG, or a file that cannot be written.
        """
        for key in self.key_iterator(dict(data)):
            shape = tuple(data[key].shape)
            if self.saver.output_ext == ".png" and np.prod(shape[3:]) != 1:
                file = getattr(data[key], "meta", {}).get("filename_or_obj", "volume")
                raise ValueError(f"{file}: PNG does not support {shape[3]} slices: choose another output_ext.")
        try:
            return super().__call__(data)
        except RuntimeError:
            if self.failures:
                raise ValueError(self.failures.pop()) from None
            raise


def segmentation_writer(output_ext: str, **options: Any) -> Callable[..., None] | None:
    """The writer of DICOM SEG; None for other formats.

    Args:
        output_ext: the files' suffix.
        **options: of :class:`scripts.data.dicom.segmentation.SegmentationWriter`.

    Raises:
        ValueError: if the packages for DICOM are not installed, or an option is invalid.
    """
    return dicom_module("segmentation").SegmentationWriter(**options) if output_ext == ".dcm" else None


def _name(meta: dict[str, Any], saver: Any) -> dict[str, Any]:
    """The name for a map, with a lower-case suffix, because MONAI does not remove upper-case ones."""
    names: dict[str, Any] = default_name_formatter(meta, saver)
    stem = name_of(Path(names["subject"]))
    return names if stem is None else {**names, "subject": stem + names["subject"][len(stem) :].lower()}
