"""DICOM SEG: label maps written by highdicom with references to their series."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import highdicom as hd
import numpy as np
from highdicom.color import CIELabColor
from pydicom import Dataset, uid
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import format_number_as_ds

from scripts.data.dicom.headers import quietly, read_dataset
from scripts.data.dicom.volume import DicomVolume, Frame
from scripts.utils.provenance import code_version, file_digest

__all__ = ["SegmentationWriter", "segment_codes"]

logging.getLogger("highdicom").setLevel(logging.WARNING)  # else a dozen lines for each file

ALGORITHM = "SemSim"
PRIVATE = "99SEMSIM"  # coding scheme of classes without a public code
# A frame of an enhanced image is passed to highdicom as a classic image, because a stack may be a part of the frames.
CLASSIC = {
    uid.EnhancedMRImageStorage: uid.MRImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage: uid.MRImageStorage,
    uid.EnhancedCTImageStorage: uid.CTImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage: uid.CTImageStorage,
}
_KEPT = (0x0008, 0x0010, 0x0012, 0x0020, 0x0028)  # groups of a header for patient, study, position and pixels
_REQUIRED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)


def segment_codes(
    num_classes: int, class_names: Mapping[str, str], class_codes: Mapping[str, Mapping[str, str]]
) -> dict[int, tuple[str, Code, Code]]:
    """Label, category and type of each foreground class.

    Args:
        num_classes: classes with the background.
        class_names: names by class number.
        class_codes: ``{"1": {"scheme": "SCT", "value": "87878005", "meaning": "Left ventricle"}}``; also
            ``"category"``, the keyword of one of DICOM's segmentation property categories (CID 7150), by default
            ``AnatomicalStructure``. A class without a code gets a private one, made from its name.

    Raises:
        ValueError: for an invalid entry.
    """
    found = {}
    for number in range(1, num_classes):
        name = str(class_names.get(str(number), f"class {number}"))
        entry = class_codes.get(str(number), {})
        if not isinstance(entry, Mapping) or (entry and not {"scheme", "value", "meaning"} <= entry.keys()):
            raise ValueError(f"class_codes: expected scheme, value and meaning for class {number}, found {entry!r}.")
        keyword = entry.get("category", "AnatomicalStructure")
        if keyword not in codes.cid7150.dir():
            raise ValueError(
                f"class_codes: category of class {number}: expected one of {', '.join(codes.cid7150.dir())}, found "
                f"{keyword!r}."
            )
        own = {"scheme": PRIVATE, "value": "".join(filter(str.isalnum, name)).upper()[:16], "meaning": name[:64]}
        code = {**own, **entry}
        found[number] = (
            name[:64],
            getattr(codes.cid7150, keyword),
            Code(code["value"], code["scheme"], code["meaning"]),
        )
    return found


class SegmentationWriter:
    """Writes a label map of a DICOM volume as DICOM SEG.

    Patient and study are copied from the source, source images are referenced, and frames without a segment are
    omitted. The UIDs are derived from those of the source and the digest of the weights: the same images segmented by
    the same weights are the same object, which an archive stores once.

    Args:
        checkpoint: file of the weights.
        num_classes: classes with the background.
        class_names: see :func:`segment_codes`.
        class_codes: see :func:`segment_codes`.
        class_colors: recommended colours by class number, as CSS names; see
            :meth:`highdicom.color.CIELabColor.from_string`.

    Raises:
        ValueError: for invalid codes or colours.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        num_classes: int,
        class_names: Mapping[str, str],
        class_codes: Mapping[str, Mapping[str, str]],
        class_colors: Mapping[str, str],
    ) -> None:
        self.digest = file_digest(checkpoint) if Path(checkpoint).is_file() else ""
        self.codes = segment_codes(num_classes, class_names, class_codes)
        self.colors = dict(class_colors)
        self._segments()  # refuses invalid colours now

    def __call__(self, labels: np.ndarray, volume: DicomVolume, target: Path) -> None:
        """Write one file.

        Args:
            labels: ``[x, y, z]``, classes on the volume's own grid.
            volume: the segmented volume.
            target: the file.

        Raises:
            ValueError: if the volume lacks attributes that a SEG requires, or the map is on another grid.
        """
        with quietly():
            self.build(labels, volume).save_as(target, enforce_file_format=True)

    def _segments(self) -> list[hd.seg.SegmentDescription]:
        """The description of each class."""
        algorithm = hd.AlgorithmIdentificationSequence(
            name=ALGORITHM,
            family=codes.DCM.ArtificialIntelligence,
            version=code_version(),
            parameters={"weights SHA-256": self.digest},
        )
        try:
            colors = {number: CIELabColor.from_string(name) for number, name in self.colors.items()}
        except (ValueError, AttributeError):
            raise ValueError(f"class_colors: expected names of colours by class, found {self.colors!r}.") from None
        return [
            hd.seg.SegmentDescription(
                segment_number=number,
                segment_label=label,
                segmented_property_category=category,
                segmented_property_type=kind,
                algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
                algorithm_identification=algorithm,
                display_color=colors.get(str(number)),
            )
            for number, (label, category, kind) in self.codes.items()
        ]

    def build(self, labels: np.ndarray, volume: DicomVolume) -> hd.seg.Segmentation:
        """The object that :meth:`__call__` writes; same arguments and errors."""
        first = volume.frames[0]
        if labels.shape != (first.size[1], first.size[0], len(volume.frames)):
            raise ValueError(
                f"a label map of {labels.shape} does not lie on the grid of its {len(volume.frames)} images."
            )
        headers = {file: read_dataset(file, pixels=False) for file in volume.files}
        header = headers[first.file]
        if not first.colour and not first.reference:
            raise ValueError("the images have no frame of reference, which a SEG needs.")
        sources = [_source(headers[frame.file], frame, i) for i, frame in enumerate(volume.frames)]
        series = [*sorted({frame.series for frame in volume.frames}), self.digest]
        content = [f"{frame.instance} {frame.number}" for frame in volume.frames]
        # other labels of the same images and weights, by other options, are another object
        content.append(hashlib.sha256(np.ascontiguousarray(labels, np.uint8).tobytes()).hexdigest())
        segmentation = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=labels.transpose(2, 1, 0).astype(np.uint8),
            segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=self._segments(),
            series_instance_uid=generate_uid(entropy_srcs=["series", *series]),
            series_number=9000 + int(header.get("SeriesNumber") or 0) % 1000,
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *series, *content]),
            instance_number=1 + (first.temporal or 0),
            manufacturer="SemSim bundle",
            manufacturer_model_name=ALGORITHM,
            software_versions=code_version(),
            device_serial_number=self.digest[:16] or "0",
            content_label="SEGMENTATION",
            content_description=f"{ALGORITHM}, weights {self.digest[:16]}",
        )
        if first.colour:
            segmentation.PatientOrientation = ""  # unknown
        segmentation.ContentCreatorName = ""
        segmentation.SeriesDescription = f"{ALGORITHM} segmentation"
        _refer_to_sources(segmentation, volume.frames, headers)
        return segmentation


def _source(header: Dataset, frame: Frame, index: int) -> Dataset:
    """One image for highdicom: classic, in one series with the others, and identified by its position in the stack."""
    source = Dataset()
    for element in header:
        if element.tag.group in _KEPT:
            source.add_new(element.tag, element.VR, element.value)
    for keyword in _REQUIRED:
        if keyword not in source:
            setattr(source, keyword, "")
    source.SOPClassUID = CLASSIC.get(header.SOPClassUID, header.SOPClassUID)
    source.SOPInstanceUID, source.SeriesInstanceUID = _stand_in(index), _stand_in(-1)
    for keyword in ("NumberOfFrames", "ImageType"):
        if keyword in source:
            delattr(source, keyword)
    if not frame.colour:
        source.SliceThickness = header.get("SliceThickness") or format_number_as_ds(frame.thickness)
    if not frame.colour and "PerFrameFunctionalGroupsSequence" in header:
        source.ImagePositionPatient = [format_number_as_ds(value) for value in frame.position]
        source.ImageOrientationPatient = [format_number_as_ds(value) for value in frame.orientation]
        source.PixelSpacing = [format_number_as_ds(value) for value in frame.spacing]
    return source


def _stand_in(index: int) -> str:
    return f"2.25.{index + 2}"


def _refer_to_sources(segmentation: Dataset, frames: Sequence[Frame], headers: Mapping[str, Dataset]) -> None:
    """Replace the images of :func:`_source` by the real ones."""
    real = {_stand_in(i): _reference(headers[frame.file], frame) for i, frame in enumerate(frames)}
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        for derivation in groups.get("DerivationImageSequence", []):
            for item in derivation.SourceImageSequence:  # shared by the frames of a slice
                item.update(real.get(item.ReferencedSOPInstanceUID, Dataset()))
    by_series: dict[str, dict[str, Dataset]] = {}
    for frame in frames:
        reference = _reference(headers[frame.file], frame)
        if "ReferencedFrameNumber" in reference:
            del reference.ReferencedFrameNumber
        by_series.setdefault(frame.series, {})[frame.instance] = reference
    segmentation.ReferencedSeriesSequence = []
    for series, references in by_series.items():
        item = Dataset()
        item.SeriesInstanceUID, item.ReferencedInstanceSequence = series, list(references.values())
        segmentation.ReferencedSeriesSequence.append(item)
    segmentation.SourceImageSequence = [r for references in by_series.values() for r in references.values()]


def _reference(header: Dataset, frame: Frame) -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = header.SOPClassUID, frame.instance
    if "NumberOfFrames" in header:
        reference.ReferencedFrameNumber = frame.number + 1
    return reference
