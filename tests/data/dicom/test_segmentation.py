"""DICOM SEG read by other programs: highdicom, dcmqi, SimpleITK, dciodvfy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from pydicom import Dataset, dcmread

from scripts.data.dicom.find import find_volumes
from scripts.data.dicom.segmentation import SegmentationWriter, segment_codes
from scripts.data.dicom.volume import DicomVolume
from tests.dicom_study import OBLIQUE, PATIENT, Study, write
from tests.workflows import ROOT, random_network, workflow

ACDC = json.loads((ROOT / "configs" / "datasets" / "acdc.json").read_text())
ISIC = json.loads((ROOT / "configs" / "datasets" / "isic.json").read_text())
FORMS: dict[str, Callable[[Study], list[Dataset]]] = {
    "cine": Study.cine,
    "a series per slice": Study.series_per_slice,
    "enhanced": lambda study: [study.enhanced()],
}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    return path


def writer(weights: Path, settings: dict = ACDC) -> SegmentationWriter:
    names = ("class_names", "class_codes", "class_colors")
    return SegmentationWriter(weights, settings["num_classes"], **{name: settings[name] for name in names})


def written(tmp_path: Path, weights: Path, form: str = "cine", phase: int = 3) -> tuple[Path, Study, DicomVolume]:
    """A SEG of one phase of an oblique study; its middle slice is left empty."""
    study = Study(turn=OBLIQUE)
    for labels in study.labels:
        labels[..., 2] = 0
    datasets = FORMS[form](study)
    write([datasets[i] for i in np.random.default_rng(0).permutation(len(datasets))], tmp_path / "in")
    volume = find_volumes(tmp_path / "in", phase=phase).volumes[0]
    writer(weights)(study.labels[phase - 1], volume, tmp_path / "seg.dcm")
    return tmp_path / "seg.dcm", study, volume


def nifti_map(study: Study, phase: int) -> sitk.Image:
    """The map on the grid of the study's NIfTI, by SimpleITK."""
    image = sitk.GetImageFromArray(study.labels[phase - 1].T)
    lps = np.diag([-1, -1, 1, 1]) @ study.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("form", FORMS)
def test_highdicom_reads_the_map_back(tmp_path: Path, weights: Path, form: str) -> None:
    path, study, volume = written(tmp_path, weights, form)
    segmentation = hd.seg.segread(path)
    lps = (np.diag([-1, -1, 1, 1]) @ study.affine)[:, [2, 1, 0, 3]]
    labels = study.labels[2]
    grid = hd.VolumeGeometry(lps, labels.shape[::-1], "PATIENT", segmentation.FrameOfReferenceUID)
    found = segmentation.get_volume(combine_segments=True).match_geometry(grid, tol=1e-3)
    np.testing.assert_array_equal(found.array, labels.T)
    assert segmentation.NumberOfFrames == sum(
        np.any(labels[..., k] == c) for c in (1, 2, 3) for k in range(labels.shape[2])
    )
    # each frame refers to its image
    for groups in segmentation.PerFrameFunctionalGroupsSequence:
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        k = int(np.argmin([np.linalg.norm(position - frame.position) for frame in volume.frames]))
        source = groups.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == volume.frames[k].instance
        assert source.get("ReferencedFrameNumber", 1) == volume.frames[k].number + 1
    series = {item.SeriesInstanceUID for item in segmentation.ReferencedSeriesSequence}
    assert series == {frame.series for frame in volume.frames}
    assert str(segmentation.PatientName) == PATIENT  # an archive files it by the patient
    assert segmentation.StudyInstanceUID == study.study


@pytest.mark.parametrize("form", FORMS)
def test_dcmqi_and_simpleitk_see_the_map_of_the_nifti(tmp_path: Path, weights: Path, form: str) -> None:
    if not (program := shutil.which("segimage2itkimage", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")):
        pytest.skip("segimage2itkimage is not installed: pip install dcmqi")
    path, study, _ = written(tmp_path, weights, form)
    options = ["--outputDirectory", str(tmp_path), "--outputType", "nii", "--mergeSegments"]
    subprocess.run([program, "--inputDICOM", str(path), *options], check=True, capture_output=True)
    expected = nifti_map(study, 3)
    found = sitk.ReadImage(str(tmp_path / "1.nii.gz"))
    found = sitk.Resample(found, expected, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(expected))
    (segments,) = json.loads((tmp_path / "meta.json").read_text())["segmentAttributes"]  # one merged image
    assert [segment["SegmentLabel"] for segment in segments] == ["RV", "Myo", "LV"]
    assert segments[0]["recommendedDisplayRGBValue"] == [255, 69, 0]


def validate(path: Path) -> list[str]:
    if not (program := shutil.which("dciodvfy")):
        pytest.skip("dciodvfy is not installed: apt-get install dicom3tools")
    done = subprocess.run([program, str(path)], capture_output=True, text=True)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("form", FORMS)
def test_the_validator_finds_no_error(tmp_path: Path, weights: Path, form: str) -> None:
    assert validate(written(tmp_path, weights, form)[0]) == []


def test_a_photographs_map(tmp_path: Path, weights: Path) -> None:
    write([Study().photograph(np.zeros((40, 50, 3), np.uint8))], tmp_path / "in")
    volume = find_volumes(tmp_path / "in", photographs=True).volumes[0]
    labels = np.zeros((50, 40, 1), np.uint8)
    labels[5:20, 7:12] = 1
    writer(weights, ISIC)(labels, volume, tmp_path / "seg.dcm")
    segmentation = hd.seg.segread(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(segmentation.pixel_array.squeeze(), labels[..., 0].T)
    description = segmentation.get_segment_description(1)
    assert description.segmented_property_category.meaning == "Morphologically Abnormal Structure"
    assert description.segmented_property_type.value == "95324001"
    assert validate(tmp_path / "seg.dcm") == []


def test_an_empty_map_is_a_sound_object(tmp_path: Path, weights: Path) -> None:
    study = Study(phases=1)
    write(study.cine(), tmp_path / "in")
    volume = find_volumes(tmp_path / "in").volumes[0]
    writer(weights)(np.zeros_like(study.labels[0]), volume, tmp_path / "seg.dcm")
    assert not hd.seg.segread(tmp_path / "seg.dcm").pixel_array.any()
    assert validate(tmp_path / "seg.dcm") == []


def test_other_labels_are_another_object(tmp_path: Path, weights: Path) -> None:
    """Of the same images and weights, such as with the largest component alone; an archive keeps both."""
    path, study, volume = written(tmp_path, weights)
    first = dcmread(path)
    writer(weights)(np.minimum(study.labels[2], 2), volume, path)
    second = dcmread(path)
    assert second.SOPInstanceUID != first.SOPInstanceUID
    assert second.SeriesInstanceUID == first.SeriesInstanceUID


def test_uids_are_made_from_input_and_weights(tmp_path: Path, weights: Path) -> None:
    def uids(phase: int) -> tuple[str, str]:
        path, _, _ = written(tmp_path, weights, phase=phase)
        ds = dcmread(path)
        return ds.SeriesInstanceUID, ds.SOPInstanceUID

    first, again, other = uids(1), uids(1), uids(2)
    weights.write_bytes(b"other weights")
    assert first == again
    assert first[0] == other[0]
    assert len({first[1], other[1], uids(1)[1]}) == 3


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ({"1": {"value": "1"}}, "class_codes: expected scheme, value and meaning for class 1"),
        ({"1": "heart"}, "class_codes: expected scheme, value and meaning for class 1"),
        (
            {"1": {"scheme": "SCT", "value": "1", "meaning": "x", "category": "Odd"}},
            "category of class 1: expected one of",
        ),
    ],
)
def test_codes_of_another_form_are_refused(codes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segment_codes(2, {"1": "x"}, codes)


def test_a_class_without_a_code_is_named(weights: Path) -> None:
    label, category, kind = segment_codes(2, {"1": "Scar tissue"}, {})[1]
    assert (label, category.meaning) == ("Scar tissue", "Anatomical Structure")
    assert (kind.value, kind.scheme_designator, kind.meaning) == ("SCARTISSUE", "99SEMSIM", "Scar tissue")
    with pytest.raises(ValueError, match="class_colors: expected names of colours by class"):
        SegmentationWriter(weights, 2, {}, {}, {"1": "no colour"})


def infer(tmp_path: Path, **options: object) -> Path:
    torch.save(random_network().state_dict(), tmp_path / "net.pt")
    given = {"dataset_dir": str(tmp_path / "in"), "checkpoint": str(tmp_path / "net.pt"), "image_size": 48, **options}
    workflow("infer", "inference.json", **given).run()
    return Path(str(options["output_dir"]))


def test_inference_writes_the_same_map_as_nifti_and_as_seg(tmp_path: Path) -> None:
    study = Study(turn=OBLIQUE)
    write(study.cine(), tmp_path / "in")
    nifti = infer(tmp_path, phase="ed", output_dir=str(tmp_path / "a"))
    seg = infer(tmp_path, phase="ed", output_dir=str(tmp_path / "b"), output_ext=".dcm")
    expected = sitk.ReadImage(str(next(nifti.glob("*_seg.nii.gz"))))
    segmentation = hd.seg.segread(next(seg.glob("*_seg.dcm")))
    size, spacing, origin = expected.GetSize(), expected.GetSpacing(), expected.GetOrigin()
    lps = np.eye(4)
    lps[:3, :3] = np.reshape(expected.GetDirection(), (3, 3)) * spacing
    lps[:3, 3] = origin
    grid = hd.VolumeGeometry(lps[:, [2, 1, 0, 3]], size[::-1], "PATIENT", segmentation.FrameOfReferenceUID)
    found = segmentation.get_volume(combine_segments=True).match_geometry(grid, tol=1e-2)
    assert len(np.unique(found.array)) > 1
    np.testing.assert_array_equal(found.array, sitk.GetArrayFromImage(expected))
    # a second run has nothing left to do
    before = next(seg.glob("*_seg.dcm")).stat().st_mtime_ns
    infer(tmp_path, phase="ed", output_dir=str(tmp_path / "b"), output_ext=".dcm")
    assert next(seg.glob("*_seg.dcm")).stat().st_mtime_ns == before
