"""Labels of imported volumes: a DICOM SEG that refers to their images, or a NIfTI file with their name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel as nib
import numpy as np
from pydicom import Dataset

from scripts.data.dicom.headers import quietly, read_dataset
from scripts.data.dicom.volume import DicomVolume
from scripts.data.layouts.custom import name_of
from scripts.data.nifti import LPS_TO_RAS, itk_affine
from scripts.monai_label.segments import ClassTerms, Segment
from scripts.utils.files import files_below

__all__ = ["is_labeled_by", "nifti_label", "segmentation_label"]

ENDINGS = ("", "_gt", "_seg", "_label", "_segmentation", "_mask")


def is_labeled_by(file: Path, volumes: Sequence[DicomVolume]) -> DicomVolume | None:
    """The volume whose images a DICOM SEG refers to; None if there is none."""
    with quietly():
        dataset = read_dataset(file, pixels=False)
    wanted = _references(dataset)
    for volume in volumes:
        if any((f.instance, f.number + 1) in wanted or (f.instance, None) in wanted for f in volume.frames):
            return volume
    return None


def segmentation_label(file: Path, volume: DicomVolume, terms: ClassTerms) -> np.ndarray:
    """The classes of a DICOM SEG on a volume's grid, ``[x, y, z]``; omitted slices are background.

    Args:
        file: the SEG.
        volume: the images that it refers to.
        terms: names and codes of the classes.

    Raises:
        ValueError: if segments are not classes, overlap, or do not lie on the volume's grid.
    """
    with quietly():
        segmentation = hd.seg.segread(file)
        classes = terms.classes([_segment(segmentation, number) for number in segmentation.segment_numbers])
        first = volume.frames[0]
        shape = (len(volume.frames), *first.size)
        try:
            if volume.is_photograph:
                found = segmentation.get_pixels_by_source_instance([first.instance], combine_segments=True)
            else:
                affine = (LPS_TO_RAS @ volume.affine)[:, [2, 1, 0, 3]]
                grid = hd.VolumeGeometry(affine, shape, "PATIENT", first.reference or None)
                found = segmentation.get_volume(combine_segments=True).match_geometry(grid, tol=0.01).array
        except (ValueError, RuntimeError):
            raise ValueError("its segments overlap, or do not lie on the grid of their images.") from None
    label = np.zeros(shape, np.uint8)
    for value, number in classes.items():
        label[found == value] = number
    return label.T


def nifti_label(folder: Path, volume: DicomVolume, alone: bool) -> np.ndarray | None:
    """The label in a folder with the name of a volume or its series' UID; None if there is none.

    Args:
        folder: folder of label maps.
        volume: the images.
        alone: whether it is the only volume of its series, so that the UID names it.

    Raises:
        ValueError: if it is not on the volume's grid, not a label map, or named after a series with several volumes.
    """
    files = [file for file in files_below(folder) if _is_nifti(file)]

    def named(stem: str) -> Path | None:
        names = {f"{stem}{ending}" for ending in ENDINGS}
        return next((file for file in files if Path(str(name_of(file))).name in names), None)

    file = named(Path(volume).stem)
    if file is None:
        file = named(volume.frames[0].series)
        if file is not None and not alone:
            raise ValueError(f"'{file.name}' is named after a series with several volumes: name it after one of them.")
    if file is None:
        return None
    image = nib.Nifti1Image.from_filename(file)
    array = np.asarray(image.dataobj)
    first = volume.frames[0]
    if array.shape != (first.size[1], first.size[0], len(volume.frames)):
        raise ValueError(f"its label has {array.shape} voxels, unlike its images.")
    if not np.allclose(itk_affine(image.header), volume.affine, atol=0.01):
        raise ValueError("its label and its images have different positions.")
    if not np.array_equal(array, np.round(array)) or array.min() < 0 or array.max() > 255:
        raise ValueError("its label has values other than whole numbers from 0 to 255.")
    return array.astype(np.uint8)


def _is_nifti(file: Path) -> bool:
    return file.name.lower().endswith((".nii", ".nii.gz"))


def _segment(segmentation: Any, number: int) -> Segment:
    description = segmentation.get_segment_description(number)
    kind = description.segmented_property_type
    return Segment(number, (description.segment_label, kind.meaning), kind.value)


def _references(dataset: Dataset) -> set[tuple[str, int | None]]:
    """Instances that a SEG refers to, with frame numbers if it has them."""
    frames = [
        item
        for groups in dataset.get("PerFrameFunctionalGroupsSequence") or []
        for derivation in groups.get("DerivationImageSequence") or []
        for item in derivation.get("SourceImageSequence") or []
    ]
    whole = [
        item
        for series in dataset.get("ReferencedSeriesSequence") or []
        for item in series.get("ReferencedInstanceSequence") or []
    ]
    return {(str(item.ReferencedSOPInstanceUID), _number(item)) for item in frames or whole}


def _number(item: Mapping[str, Any] | Any) -> int | None:
    number = item.get("ReferencedFrameNumber")
    return None if number is None else int(number[0] if isinstance(number, Sequence) else number)
