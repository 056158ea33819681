"""A phantom study as DICOM, in the forms that scanners and archives give it; ``python tests/dicom_study.py FOLDER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import Dataset, FileMetaDataset, uid
from pydicom.valuerep import format_number_as_ds

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bundle.workflows import CONFIGS
from scripts.data.dicom.find import find_volumes
from scripts.data.dicom.segmentation import SegmentationWriter
from scripts.phantoms.heart import PhantomPatient

PATIENT = "Phantomson^Quendolin"
BIRTH = "19710214"
STUDY_DATE = "20240229"
HOSPITAL = "Saint Nowhere Infirmary"
SECRETS = ("hantomson", "uendolin", BIRTH, STUDY_DATE, "Nowhere", "PID-4711", "ACC-0815")
"""What must appear in nothing that leaves the archive."""

OBLIQUE = np.linalg.qr(np.eye(3) + 0.4 * np.random.default_rng(3).normal(size=(3, 3)))[0]
OBLIQUE *= np.sign(np.diag(OBLIQUE))  # rows to the left, columns to the back, slices to the head, roughly


class Study:
    """One patient's study: a beating heart, drawn by the bundle's own phantom.

    Args:
        seed: of the patient.
        phases: phases of the cine; images between end-diastole and end-systole are mixed from the two.
        turn: directions of rows, columns and slices as the columns of a matrix.
        patient: ID of the patient.
    """

    def __init__(
        self, seed: int = 0, phases: int = 4, turn: np.ndarray | None = None, patient: str = "PID-4711"
    ) -> None:
        turn = np.eye(3) if turn is None else turn
        rng = np.random.default_rng(seed)
        heart = PhantomPatient(rng, size=(40, 56), spacing=(4.0, 5.0), slices=(4, 5))
        diastole, systole = (heart.volume(state) for state in (False, True))
        contraction = np.sin(np.pi * np.arange(phases) / phases)
        self.volumes = [np.round((1 - c) * diastole[0] + c * systole[0]).astype(np.int16) for c in contraction]
        self.labels = [systole[1] if c > 0.5 else diastole[1] for c in contraction]
        self.turn, self.spacing, self.gap = turn, (round(heart.pixel, 4), round(heart.pixel * 1.25, 4)), 8.5
        self.origin = turn @ np.array([-71.25, -60.5, 33.125])
        self.key, self.patient = f"study {seed}", patient
        self.study = self.uid_of("study")
        self.reference = self.uid_of("frame of reference")

    @property
    def affine(self) -> np.ndarray:
        """Voxel indices ``[x, y, z]`` to RAS millimetres."""
        affine = np.eye(4)
        # columns are spacing[1] apart, rows spacing[0]
        affine[:3, :3] = self.turn * [self.spacing[1], self.spacing[0], self.gap]
        affine[:3, 3] = self.origin
        return np.diag([-1, -1, 1, 1]) @ affine

    def uid_of(self, *words: object) -> str:
        return uid.generate_uid(entropy_srcs=[self.key, *map(str, words)])

    def header(self, series: str, number: int, sop_class: str, instance: str, modality: str = "MR") -> Dataset:
        """Common attributes of the study's objects, including all patient data."""
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = self.uid_of(series, instance)
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = PATIENT, self.patient, BIRTH, "O"
        ds.StudyInstanceUID, ds.SeriesInstanceUID = self.study, self.uid_of(series)
        ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = STUDY_DATE
        ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "112233"
        ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "ACC-0815", "1", f"Doctor {PATIENT}"
        ds.InstitutionName, ds.StationName, ds.Manufacturer = HOSPITAL, "Nowhere1", "Phantom Works"
        ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, number, 1
        ds.SeriesDescription = f"{series} of {PATIENT}"
        ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = self.reference, ""
        return ds

    def plane(self, ds: Dataset, k: int) -> Dataset:
        """Position of slice ``k``."""
        position = self.origin + k * self.gap * self.turn[:, 2]
        ds.ImagePositionPatient = [format_number_as_ds(float(v)) for v in position]
        ds.ImageOrientationPatient = [format_number_as_ds(float(v)) for v in self.turn[:, :2].T.ravel()]
        ds.PixelSpacing, ds.SliceThickness, ds.SpacingBetweenSlices = list(self.spacing), 8, self.gap
        return ds

    def image(self, array: np.ndarray, series: str, number: int, instance: str, k: int, phase: int) -> Dataset:
        """A classic MR image; ``array`` is ``[x, y]``."""
        ds = self.plane(self.header(series, number, uid.MRImageStorage, instance), k)
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
        ds.ScanningSequence, ds.SequenceVariant, ds.ScanOptions, ds.MRAcquisitionType = "GR", "SK", "", "2D"
        ds.EchoTime, ds.RepetitionTime, ds.FlipAngle, ds.EchoTrainLength = 1.5, 3, 60, 1
        ds.TriggerTime = 31.5 * phase + 0.4 * k  # another heart rate in each breath-hold
        pixels(ds, array.T)
        return ds

    def cine(self, series: str = "cine", number: int = 7, phases: Sequence[int] | None = None) -> list[Dataset]:
        """One classic series with all phases of all slices, in the scanners' order: by slice, from the apex."""
        return [
            self.image(volume[..., k], series, number, f"{phase} {k}", k, phase)
            for k in reversed(range(self.volumes[0].shape[2]))
            for phase, volume in enumerate(self.volumes)
            if phases is None or phase in phases
        ]

    def series_per_slice(self) -> list[Dataset]:
        """The cine with a separate series for each slice."""
        return [
            self.image(volume[..., k], f"slice {k}", 20 + k, f"{phase}", k, phase)
            for k in range(self.volumes[0].shape[2])
            for phase, volume in enumerate(self.volumes)
        ]

    def enhanced(self, slope: float = 1.0, intercept: float = 0.0) -> Dataset:
        """The cine in one enhanced multi-frame object, with shuffled frames."""
        ds = self.header("enhanced", 9, uid.EnhancedMRImageStorage, "only")
        ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "NONE"]
        pairs = [(phase, k) for phase in range(len(self.volumes)) for k in range(self.volumes[0].shape[2])]
        np.random.default_rng(1).shuffle(pairs)
        shared = Dataset()
        measures = self.plane(Dataset(), 0)
        orientation = Dataset()
        orientation.ImageOrientationPatient = measures.ImageOrientationPatient
        del measures.ImageOrientationPatient, measures.ImagePositionPatient
        shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
        transformation = Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, intercept
        transformation.RescaleType = "US"
        shared.PixelValueTransformationSequence = [transformation]
        kind = Dataset()
        kind.FrameType = ds.ImageType
        shared.MRImageFrameTypeSequence = [kind]
        ds.SharedFunctionalGroupsSequence = [shared]
        ds.PerFrameFunctionalGroupsSequence = []
        for phase, k in pairs:
            frame, content, position = Dataset(), Dataset(), Dataset()
            content.TemporalPositionIndex, content.StackID, content.InStackPositionNumber = phase + 1, "1", k + 1
            position.ImagePositionPatient = self.plane(Dataset(), k).ImagePositionPatient
            frame.FrameContentSequence, frame.PlanePositionSequence = [content], [position]
            ds.PerFrameFunctionalGroupsSequence.append(frame)
        pixels(ds, np.stack([self.volumes[phase][..., k].T for phase, k in pairs]))
        ds.NumberOfFrames = len(pairs)
        return ds

    def photograph(self, array: np.ndarray, name: str = "mole", kind: str = uid.VLPhotographicImageStorage) -> Dataset:
        """A colour photograph, ``[rows, columns, 3]``."""
        ds = self.header("photographs", 3, kind, name, modality="XC")
        del ds.FrameOfReferenceUID, ds.PositionReferenceIndicator
        ds.ImageType = ["ORIGINAL", "PRIMARY"]
        pixels(ds, array)
        ds.LossyImageCompression = "00"
        return ds

    def other(self, sop_class: str, modality: str, number: int = 50) -> Dataset:
        """An object without an image."""
        return self.header(f"other {sop_class}", number, sop_class, "only", modality=modality)


def pixels(ds: Dataset, array: np.ndarray) -> None:
    """Enter ``[rows, columns]``, ``[frames, rows, columns]`` or ``[rows, columns, 3]`` of 8 or 16 bits."""
    colour = array.dtype == np.uint8 and array.ndim == 3
    ds.SamplesPerPixel = 3 if colour else 1
    ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        ds.PlanarConfiguration = 0
    ds.Rows, ds.Columns = array.shape[:2] if colour else array.shape[-2:]
    ds.BitsAllocated = ds.BitsStored = 8 * array.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(array.dtype.kind == "i")
    ds.PixelData = np.ascontiguousarray(array).tobytes()
    ds["PixelData"].VR = "OB" if array.itemsize == 1 else "OW"


def write(datasets: Sequence[Dataset], folder: Path, name: Callable[[int], str] | None = None) -> list[Path]:
    """Write files with names as in archives: without suffix or order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / (name(i) if name else f"IM{i:05d}") for i in range(len(datasets))]
    for path, ds in zip(paths, datasets, strict=True):
        ds.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return paths


def archive(folder: Path, **options: Any) -> Study:
    """An archive's export: a cine, a localizer, a long axis, a map and a report in one folder, shuffled."""
    study = Study(**options)
    localizer = study.image(study.volumes[0][..., 0], "localizer", 1, "0", 0, 0)
    localizer.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    across = Study(**{**options, "turn": study.turn[:, [2, 0, 1]]})
    long_axis = [across.image(v[..., 0], "four chambers", 4, f"{i}", 0, i) for i, v in enumerate(across.volumes)]
    t1_map = study.cine("T1 map", 11, phases=[0])
    for ds in t1_map:
        ds.ImageType = ["DERIVED", "PRIMARY", "T1 MAP"]
    report = study.other(uid.BasicTextSRStorage, "SR")
    everything = [*study.cine(), localizer, *long_axis, *t1_map, report]
    order = np.random.default_rng(0).permutation(len(everything))
    write([everything[i] for i in order], folder)
    return study


def drawn(study: Study, folder: Path, phases: Sequence[int]) -> None:
    """The labels of some phases, from 1, of a study in a folder as DICOM SEGs among its files."""
    acdc = json.loads((CONFIGS / "datasets" / "acdc.json").read_text(encoding="utf-8"))
    names = {key: acdc[key] for key in ("class_names", "class_codes", "class_colors")}
    write_seg = SegmentationWriter("drawn by hand", acdc["num_classes"], **names)
    volumes = find_volumes(folder, phase=phases).volumes
    for phase, volume in zip(phases, volumes, strict=True):
        write_seg(study.labels[phase - 1], volume, folder / f"SG{phase:05d}")


if __name__ == "__main__":
    for i in range(6):
        place = Path(sys.argv[1]) / f"{i}"
        made = archive(place, seed=i, patient=f"PID-{4711 + i}")
        if i < 3:
            drawn(made, place, phases=(1, 3))
