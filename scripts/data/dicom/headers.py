"""Headers of DICOM files, read by pydicom: the kind of each file, its images and their positions."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, config, dcmread, uid
from pydicom.pixels import get_decoder

from scripts.data.dicom.volume import Frame, starts_as_dicom

__all__ = ["Header", "functional_groups", "quietly", "read_dataset", "read_header"]

VOLUMES = {
    uid.MRImageStorage,
    uid.EnhancedMRImageStorage,
    uid.LegacyConvertedEnhancedMRImageStorage,
    uid.CTImageStorage,
    uid.EnhancedCTImageStorage,
    uid.LegacyConvertedEnhancedCTImageStorage,
}
PHOTOGRAPHS = {
    uid.VLPhotographicImageStorage,
    uid.DermoscopicPhotographyImageStorage,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameTrueColorSecondaryCaptureImageStorage,
}
# Values of Image Type after the second (PS3.3, C.8.3.1.1.1, C.8.13.3.1.1 and C.8.15.3.1.1), and those of scanners.
MAPS = {"ADC", "EADC", "FA", "MIP", "MINIP", "MPR", "MTT", "RCBF", "RCBV", "TTP", "PERFUSION", "SUBTRACTION"}
MAPS |= {
    "T1 MAP",
    "T2 MAP",
    "T2_STAR MAP",
    "T1_MAP",
    "T2_MAP",
    "ECV_MAP",
    "PROJECTION IMAGE",
    "VELOCITY",
    "VELOCITY MAP",
}
NOT_MAGNITUDE = {"P", "R", "I", "PHASE", "PHASE MAP", "REAL", "IMAGINARY"}


@dataclass
class Header:
    """The header of one DICOM file.

    Attributes:
        file: path of the file.
        study: UID of the study, or "".
        series: UID of the series, or "".
        instance: UID of the content.
        patient: identity of the patient; must not be shown.
        number: number of the series in its study.
        description: description of the series, free text; must not be shown.
        modality: such as MR.
        frames: the images.
        skip: reason why it has no image to segment.
        fault: reason why its images cannot be used.
        is_segmentation: whether it is a DICOM SEG.
    """

    file: Path
    study: str = ""
    series: str = ""
    instance: str = ""
    patient: str = ""
    number: str = ""
    description: str = ""
    modality: str = ""
    frames: list[Frame] = field(default_factory=list)
    skip: str = ""
    fault: str = ""
    is_segmentation: bool = False


@contextmanager
def quietly() -> Iterator[None]:
    """Read without pydicom's warnings, which quote values such as the patient's name."""
    mode, config.settings.reading_validation_mode = config.settings.reading_validation_mode, config.IGNORE
    disabled, config.logger.disabled = config.logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        config.settings.reading_validation_mode = mode
        config.logger.disabled = disabled


def read_dataset(path: str | Path | BinaryIO, pixels: bool = True) -> Dataset:
    """Read a file; a missing transfer syntax is replaced by the detected one.

    Args:
        path: the file, with or without a preamble.
        pixels: whether to read the pixels too.
    """
    dataset = dcmread(path, force=True, stop_before_pixels=not pixels)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    return dataset


def read_header(path: Path) -> Header | None:
    """Read the header of a file.

    Args:
        path: any file.

    Returns:
        The header; None for files that are not DICOM, and for a DICOMDIR, which only lists other files.
    """
    found = Header(path)
    with quietly():
        try:
            if not starts_as_dicom(path):
                return None
            with open(path, "rb") as stream:
                dataset = read_dataset(stream, pixels=False)
                rest = os.fstat(stream.fileno()).st_size - stream.tell()
            if dataset.get("SOPClassUID") is None and dataset.preamble is None:
                return None
            if _sop_class(dataset) == uid.MediaStorageDirectoryStorage:
                return None
            _identify(found, dataset)
            _examine(found, dataset, rest)
        except Exception:  # of any type, because any part of the file may be damaged
            found.fault = "damaged or truncated."
    return found


def functional_groups(dataset: Dataset, number: int) -> dict[str, Dataset]:
    """The functional groups of one frame of an enhanced image by name; its own override the shared ones."""
    per_frame = dataset.PerFrameFunctionalGroupsSequence[number]
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    return {element.keyword: element.value[0] for group in (shared[0], per_frame) for element in group if element.value}


def _sop_class(dataset: Dataset) -> str:
    return str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")


def _identify(found: Header, dataset: Dataset) -> None:
    """Set the identifiers."""
    found.study = str(dataset.get("StudyInstanceUID") or "")
    found.series = str(dataset.get("SeriesInstanceUID") or "")
    found.instance = str(dataset.get("SOPInstanceUID") or "")
    patient = (str(dataset.get(keyword) or "") for keyword in ("PatientID", "IssuerOfPatientID"))
    found.patient = "\0".join(patient).strip("\0")
    number = dataset.get("SeriesNumber")
    found.number = "" if number is None else str(int(number))
    found.description = " ".join(str(dataset.get(k) or "") for k in ("SeriesDescription", "ProtocolName"))
    modality = str(dataset.get("Modality") or "")
    found.modality = modality if modality.isalpha() and len(modality) <= 16 else ""


def _examine(found: Header, dataset: Dataset, rest: int) -> None:
    """Find the images, or the reason why there is none.

    Args:
        found: the header to complete.
        dataset: the file without its pixels.
        rest: bytes after the header.
    """
    sop_class = _sop_class(dataset)
    name = uid.UID(sop_class).name if sop_class in uid.UID_dictionary else "an unknown kind of object"
    photograph = sop_class in PHOTOGRAPHS and dataset.get("SamplesPerPixel", 1) == 3
    photograph |= sop_class in PHOTOGRAPHS and dataset.get("PhotometricInterpretation") == "PALETTE COLOR"
    # exports of research software: a secondary capture with a position
    placed = sop_class == uid.SecondaryCaptureImageStorage and dataset.get("ImagePositionPatient") is not None
    if not sop_class:
        found.fault = "damaged or truncated."
    elif sop_class == uid.SegmentationStorage:
        found.is_segmentation = True
    elif photograph:
        found.fault = _pixel_fault(dataset, rest)
        if int(dataset.get("NumberOfFrames") or 1) > 1:
            found.skip = "several pictures in one file, a video."
        found.frames = [] if found.fault else [_frame(found, dataset, {}, 0, colour=True)]
    elif sop_class not in VOLUMES and not placed:
        found.skip = f"{name}: not an image to segment."
    elif dataset.get("SamplesPerPixel", 1) != 1:
        found.skip = "a colour picture among scans."
    else:
        found.fault = _pixel_fault(dataset, rest)
        if not found.fault:
            _frames(found, dataset)
    if (found.frames or found.is_segmentation) and not (found.study and found.series and found.instance):
        found.fault = "the study and series are missing."


def _pixel_fault(dataset: Dataset, rest: int) -> str:
    """The fault of a file's pixels that is detectable without decoding; "" for none.

    Args:
        dataset: the file without its pixels.
        rest: bytes after the header.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    size = [int(dataset.get(key) or 0) for key in ("Rows", "Columns", "BitsAllocated")]
    if not all(size):
        return "the header lacks the number of rows, columns or bits."
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        return "the transfer syntax is unknown or has no decoder."
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return ""
    samples = int(dataset.get("SamplesPerPixel") or 1) * int(dataset.get("NumberOfFrames") or 1)
    expected = size[0] * size[1] * size[2] * samples // 8
    if dataset.get("PhotometricInterpretation") == "YBR_FULL_422":
        expected = expected * 2 // 3
    if rest <= 16:
        return "no pixel data."
    return "damaged or truncated." if not syntax.is_compressed and rest < expected else ""


def _frames(found: Header, dataset: Dataset) -> None:
    """The images of a file of one of the kinds in :data:`VOLUMES`."""
    count = int(dataset.get("NumberOfFrames") or 1)
    if "PerFrameFunctionalGroupsSequence" in dataset:
        if len(dataset.PerFrameFunctionalGroupsSequence) != count:
            found.fault = f"{count} frames, but {len(dataset.PerFrameFunctionalGroupsSequence)} descriptions of frames."
            return
        groups: Sequence[Mapping[str, Dataset]] = [functional_groups(dataset, i) for i in range(count)]
    elif count == 1:
        groups = [{}]
    else:
        found.fault = f"{count} frames without a description of each."
        return
    reasons = [_no_original(_image_type(dataset, group)) for group in groups]
    found.frames = [_frame(found, dataset, group, i) for i, group in enumerate(groups) if not reasons[i]]
    if not found.frames:
        found.skip = next(filter(None, reasons))
    elif not all(frame.position and frame.orientation and frame.spacing for frame in found.frames):
        found.fault = "no position, orientation or pixel spacing."


def _image_type(dataset: Dataset, groups: Mapping[str, Dataset]) -> list[str]:
    for name in ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence"):
        if name in groups and groups[name].get("FrameType"):
            return [str(value).upper() for value in groups[name].FrameType]
    values = dataset.get("ImageType") or []
    return [str(value).upper() for value in ([values] if isinstance(values, str) else values)]


def _no_original(image_type: Sequence[str]) -> str:
    """Why an image of this type is not to be segmented; "" if it is."""
    if "LOCALIZER" in image_type:
        return "a localizer."
    if found := MAPS.intersection(image_type[2:]):
        return f"a derived map ({', '.join(sorted(found))})."
    if len(image_type) > 2 and image_type[2] in NOT_MAGNITUDE:
        return f"not a magnitude image ({image_type[2]})."
    return ""


def _frame(found: Header, dataset: Dataset, groups: Mapping[str, Dataset], number: int, colour: bool = False) -> Frame:
    """One image; values that the header lacks are empty."""

    def value(keyword: str, *names: str) -> Any:
        for name in names:
            if name in groups and groups[name].get(keyword) is not None:
                return groups[name].get(keyword)
        return dataset.get(keyword)

    def numbers(keyword: str, name: str, count: int) -> tuple[float, ...]:
        values = value(keyword, name)
        return () if values is None or len(values) != count else tuple(map(float, values))

    def number_or_none(*options: Any) -> float | None:
        return next((float(option) for option in options if option is not None), None)

    thickness = number_or_none(
        value("SpacingBetweenSlices", "PixelMeasuresSequence"), value("SliceThickness", "PixelMeasuresSequence")
    )
    temporal = number_or_none(
        value("TemporalPositionIndex", "FrameContentSequence"), dataset.get("TemporalPositionIdentifier")
    )
    technique = ("ScanningSequence", "SequenceVariant", "EchoTime", "FlipAngle", "ContrastBolusAgent")
    geometry: dict[str, Any] = {}
    if not colour:
        geometry = {
            "orientation": numbers("ImageOrientationPatient", "PlaneOrientationSequence", 6),
            "position": numbers("ImagePositionPatient", "PlanePositionSequence", 3),
            "spacing": numbers("PixelSpacing", "PixelMeasuresSequence", 2),
            "thickness": thickness or 1.0,
            "temporal": None if temporal is None else int(temporal),
            "trigger": number_or_none(
                value("NominalCardiacTriggerDelayTime", "CardiacSynchronizationSequence"),
                value("TemporalPositionTimeOffset", "TemporalPositionSequence"),
                dataset.get("TriggerTime"),
            ),
            "technique": tuple(str(dataset.get(keyword)) for keyword in technique),
        }
    return Frame(
        file=str(found.file),
        number=number,
        study=found.study,
        series=found.series,
        instance=found.instance,
        reference=str(dataset.get("FrameOfReferenceUID") or ""),
        size=(int(dataset.Rows), int(dataset.Columns)),
        colour=colour,
        **geometry,
    )
