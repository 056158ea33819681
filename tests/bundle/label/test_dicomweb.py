"""The bundle in a MONAI Label server with studies in an archive: a real Orthanc on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
import requests
import SimpleITK as sitk  # noqa: N813
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from bundle.label.server import LabelServer, app_folder
from scripts.phantoms import make_phantom_cohort
from tests.bundle.label.test_server import A, make_bundle
from tests.orthanc import running_orthanc

TOOLS = Path(sys.executable).parent
TIMEOUT = 60.0
# As OHIF stores them: by the alphabet. The classes are RV, Myo, LV.
OHIF = {"lv": 3, "myo": 2, "rv": 1}

pytestmark = pytest.mark.skipif(
    not (TOOLS / "itkimage2segimage").is_file(), reason="dcmqi is not installed: pip install dcmqi"
)


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_orthanc(tmp_path_factory.mktemp("orthanc")) as address:
        yield address


def store(orthanc: str, *files: Path) -> None:
    for file in files:
        requests.post(f"{orthanc}/instances", data=file.read_bytes(), timeout=TIMEOUT).raise_for_status()


def write_series(image: sitk.Image, folder: Path, name: str) -> str:
    """A short-axis stack as MR images, one file per slice; the series' UID."""
    folder.mkdir(parents=True)
    study, series, frame = (generate_uid(entropy_srcs=[name, kind]) for kind in ("study", "series", "frame"))
    array = sitk.GetArrayFromImage(image).astype(np.uint16)
    direction = np.reshape(image.GetDirection(), (3, 3))
    for number, pixels in enumerate(array):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[name, str(number)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        path = folder / f"{number}.dcm"
        slice_ = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.is_little_endian, slice_.is_implicit_VR = True, False
        slice_.SOPClassUID, slice_.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        slice_.StudyInstanceUID, slice_.SeriesInstanceUID, slice_.FrameOfReferenceUID = study, series, frame
        slice_.PatientID, slice_.PatientName, slice_.Modality, slice_.SeriesDescription = name, name, "MR", "SAX"
        slice_.StudyDate, slice_.StudyTime, slice_.StudyID, slice_.SeriesNumber = "20200101", "120000", "1", "1"
        slice_.PatientBirthDate, slice_.PatientSex, slice_.AccessionNumber, slice_.ReferringPhysicianName = (
            "",
            "",
            "",
            "",
        )
        slice_.InstanceNumber = str(number + 1)
        slice_.Rows, slice_.Columns = pixels.shape
        slice_.PixelSpacing = [str(image.GetSpacing()[1]), str(image.GetSpacing()[0])]
        slice_.SliceThickness = str(image.GetSpacing()[2])
        slice_.ImageOrientationPatient = [f"{value:.8g}" for value in (*direction[:, 0], *direction[:, 1])]
        place = image.TransformIndexToPhysicalPoint((0, 0, number))
        slice_.ImagePositionPatient = [f"{value:.8g}" for value in place]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation, slice_.PixelRepresentation = 1, "MONOCHROME2", 0
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.PixelData = pixels.tobytes()
        slice_.save_as(path, write_like_original=False)
    return str(series)


def write_seg(label: sitk.Image, series: Path, target: Path, segments: dict[str, int], algorithm: str = "OHIF") -> Path:
    """A DICOM SEG by dcmqi with classes of a label as segments, in their order; empty slices are omitted."""
    array = sitk.GetArrayFromImage(label)
    attributes = []
    numbered = np.zeros_like(array)
    for number, (name, value) in enumerate(segments.items(), 1):
        numbered[array == value] = number
        attributes.append(
            {
                "labelID": number,
                "SegmentLabel": name,
                "SegmentDescription": name,
                "SegmentAlgorithmType": "MANUAL" if algorithm == "OHIF" else "AUTOMATIC",
                "SegmentAlgorithmName": algorithm,
                "SegmentedPropertyCategoryCodeSequence": {
                    "CodeValue": "123037004",
                    "CodingSchemeDesignator": "SCT",
                    "CodeMeaning": "Anatomical Structure",
                },
                "SegmentedPropertyTypeCodeSequence": {
                    "CodeValue": "78961009",
                    "CodingSchemeDesignator": "SCT",
                    "CodeMeaning": name,
                },
                "recommendedDisplayRGBValue": [255, 0, 0],
            }
        )
    mask = sitk.GetImageFromArray(numbered)
    mask.CopyInformation(label)
    sitk.WriteImage(mask, str(target.with_suffix(".nii.gz")))
    meta = {"SeriesDescription": "Segmentation", "SeriesNumber": "300", "InstanceNumber": "1", "BodyPartExamined": ""}
    meta |= {"ContentCreatorName": "Reader", "ContentLabel": "SEGMENTATION", "ContentDescription": "Segmentation"}
    meta |= {"ClinicalTrialSeriesID": "1", "ClinicalTrialTimePointID": "1", "ClinicalTrialCoordinatingCenterName": "x"}
    target.with_suffix(".json").write_text(json.dumps({**meta, "segmentAttributes": [attributes]}))
    command = [TOOLS / "itkimage2segimage", "--skip", "1", "--inputImageList", target.with_suffix(".nii.gz")]
    command += ["--inputDICOMDirectory", series, "--outputDICOM", target]
    command += ["--inputMetadata", target.with_suffix(".json")]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def archive(orthanc: str, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Five studies: two with a SEG as OHIF stores it, one with MONAI Label's own, which lacks a structure."""
    folder = tmp_path_factory.mktemp("archive")
    cohort = Path(make_phantom_cohort(folder / "cohort", patients=(5, 0, 0), size=(40, 48), slices=(5, 5)))
    series, labels = [], []
    for number, patient in enumerate(sorted(cohort.glob("patient*"))):
        path = sorted(patient.glob("*_frame??.nii.gz"))[0]
        image = sitk.ReadImage(str(path))
        labels.append(sitk.ReadImage(str(path).replace(".nii.gz", "_gt.nii.gz")))
        series.append(write_series(image, folder / str(number), f"phantom{number}"))
        store(orthanc, *(folder / str(number)).iterdir())
    for number in range(2):
        # the outer slices are empty: the archive has no frames for them
        array = sitk.GetArrayFromImage(labels[number])
        array[[0, -1]] = 0
        changed = sitk.GetImageFromArray(array)
        changed.CopyInformation(labels[number])
        labels[number] = changed
        store(orthanc, write_seg(changed, folder / str(number), folder / f"{number}.dcm", OHIF))
    # MONAI Label gives its two structures the first two names, whichever they are.
    misnamed = {"rv": 1, "myo": 3}
    store(orthanc, write_seg(labels[2], folder / "2", folder / "2.dcm", misnamed, "MONAILABEL"))
    return SimpleNamespace(url=f"{orthanc}/dicom-web", series=series, labels=labels)


def test_labels_from_an_archive_count_by_name(archive: SimpleNamespace, tmp_path: Path) -> None:
    bundle = make_bundle(app_folder(tmp_path), A)
    environment = {
        "MONAI_LABEL_DICOMWEB_SEARCH_FILTER": json.dumps({"Modality": "MR"}),
        "MONAI_LABEL_DICOMWEB_CACHE_PATH": str(tmp_path / "fetched"),
        "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": "1",
        "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
    }
    with LabelServer(tmp_path, archive.url, [A], environment=environment) as server:
        status = server.segment_unlabeled(A)  # fetches the worklist
        assert status == "DONE", server.log.read_text()[-3000:]
        status, log = server.train(A, max_epochs=1, val_split=0)
    assert status == "DONE", log[-3000:]
    assert "learning from 2 labelled and 2 unlabelled studies, validating on 0" in log
    (line,) = {line.partition("Left out: ")[2] for line in log.splitlines() if "Left out: " in line}
    assert line.startswith(f"the final label of '{archive.series[2]}': MONAI Label stored it with 2 of 3 structures")
    for number in range(2):
        learned = sitk.ReadImage(str(bundle / ".cache" / "labels" / f"{archive.series[number]}.nii.gz"))
        fetched = sitk.ReadImage(str(next((tmp_path / "fetched").rglob(f"{archive.series[number]}.nii.gz"))))
        assert learned.GetSize() == fetched.GetSize() == archive.labels[number].GetSize()
        truth = sitk.Resample(archive.labels[number], fetched, sitk.Transform(), sitk.sitkNearestNeighbor)
        expected = sitk.GetArrayFromImage(truth)
        assert set(np.unique(expected)) == {0, 1, 2, 3}
        np.testing.assert_array_equal(sitk.GetArrayFromImage(learned), expected)


def test_the_archive_holds_what_this_file_says(archive: SimpleNamespace, tmp_path: Path) -> None:
    """Segments by the alphabet, and three of five slices."""
    url = archive.url.removesuffix("/dicom-web")
    found = []
    for name in requests.get(f"{url}/instances", timeout=TIMEOUT).json():
        content = requests.get(f"{url}/instances/{name}/file", timeout=TIMEOUT).content
        (tmp_path / name).write_bytes(content)
        dataset = pydicom.dcmread(tmp_path / name)
        if dataset.Modality == "SEG":
            found.append([segment.SegmentLabel for segment in dataset.SegmentSequence])
            places = {tuple(frame.PlanePositionSequence[0].ImagePositionPatient) for frame in dataset[0x52009230].value}
            assert len(places) == 3 or len(found[-1]) == 2
    assert sorted(found) == [["lv", "myo", "rv"], ["lv", "myo", "rv"], ["rv", "myo"]]
