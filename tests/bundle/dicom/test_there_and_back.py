"""docs/dicom.md from end to end: an archive's export, a network, and its segmentations in an archive."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import requests
from pydicom import dcmread

from bundle.__main__ import main as bundle
from scripts.data.layouts.datalist import read_datalist
from tests.dicom_study import SECRETS, Study, archive, drawn, write
from tests.orthanc import running_orthanc
from tests.workflows import workflow

IDS = [f"PID-{4711 + i}" for i in range(4)]


@pytest.fixture
def exported(tmp_path: Path) -> list[Study]:
    """Four patients in a folder, three of them drawn."""
    studies = []
    for i, patient in enumerate(IDS):
        studies.append(archive(tmp_path / "archive" / f"{i}", seed=i, patient=patient))
        if i < 3:
            drawn(studies[i], tmp_path / "archive" / f"{i}", phases=(1, 3))
    return studies


def test_from_an_archive_to_a_network_and_back(
    tmp_path: Path, exported: list[Study], capfd: pytest.CaptureFixture[str]
) -> None:
    at = {name: str(tmp_path / name) for name in ("archive", "imported", "list.json", "run", "cache", "scores", "out")}
    wanted = ["--phase", "ed,es", "--dataset", "acdc"]
    bundle(["import", "--source", at["archive"], "--output", at["imported"], *wanted])
    bundle(["prepare", "acdc", "--source", f"{at['imported']}/datalist.json", "--output", at["list.json"]])
    parts = read_datalist(at["list.json"])
    assert sum("label" in record for record in parts["train"]) == 4
    assert [len(parts[part]) for part in ("train", "val")] == [6, 2]

    given = {"dataset_dir": at["list.json"], "cache_dir": at["cache"], "image_size": 32, "labeled": 2}
    steps = {"epochs": 1, "train#trainer#epoch_length": 2, "batch_size": 2}
    methods = ("train.json", "methods/semsim_minus.json")
    workflow("train", *methods, **given, **steps, output_dir=at["run"]).run()
    weights = {"checkpoint": f"{at['run']}/model.pt"}
    workflow("infer", "train.json", "evaluate.json", **given, **weights, output_dir=at["scores"]).run()
    with (tmp_path / "scores" / "summary.csv").open() as table:
        assert {row["class"] for row in csv.DictReader(table)} == {"RV", "Myo", "LV", "mean"}
    bundle(["pack", "--dataset", "acdc", "--weights", weights["checkpoint"], "--output", str(tmp_path / "packed")])

    # the packed bundle, without this repository; a series that cannot be used does not stop the others
    damaged = Study(seed=9, phases=1, patient="PID-4720").cine()
    write([ds for i, ds in enumerate(damaged) if i != 1], tmp_path / "archive" / "9")
    command = [sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", at["archive"], "--phase", "ed", "--output_ext", ".dcm", "--quality", "True"]
    place = tmp_path / "packed" / "semsim_acdc_segmentation"
    done = subprocess.run([*command, "--output_dir", at["out"]], cwd=place, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr[-2000:]
    assert len([line for line in done.stderr.splitlines() if line.endswith("a slice is missing.")]) == 1, done.stderr
    files = sorted((tmp_path / "out").rglob("*_seg.dcm"))
    segmentations = [hd.seg.segread(file) for file in files]
    assert {seg.PatientID for seg in segmentations} == set(IDS)
    for segmentation in segmentations:
        (study,) = [study for study in exported if study.study == segmentation.StudyInstanceUID]
        (series,) = segmentation.ReferencedSeriesSequence
        assert series.SeriesInstanceUID == study.uid_of("cine")

    check_quality(tmp_path / "out", exported)
    said = "".join(capfd.readouterr()) + done.stdout + done.stderr
    outside = [path for name in ("imported", "cache", "run", "scores") for path in (tmp_path / name).rglob("*.*")]
    outside += [tmp_path / "list.json", *(tmp_path / "out").rglob("*.json*"), *(tmp_path / "out").rglob("*.csv")]
    for secret in (*SECRETS, *IDS, "PID-4720"):
        assert secret not in said
        assert not any(secret.encode() in path.read_bytes() for path in outside if path.is_file())

    with running_orthanc(tmp_path) as address:
        bundle(["send", *map(str, files), "--url", f"{address}/dicom-web"])
        kept = requests.get(f"{address}/instances", timeout=60).json()
        back = [requests.get(f"{address}/instances/{name}/file", timeout=60).content for name in kept]
    read = {dataset.PatientID: dataset for dataset in (dcmread(BytesIO(content)) for content in back)}
    assert len(back) == len(IDS)
    assert read == {dataset.PatientID: dataset for dataset in map(dcmread, files)}, "unchanged"


def check_quality(out: Path, studies: list[Study]) -> None:
    """A side file by each SEG, whose volumes are those of its segments."""
    with (out / "quality.csv").open() as table:
        assert len(list(csv.DictReader(table))) == 3 * len(studies)
    for file in out.rglob("*_seg.dcm"):
        segmentation = hd.seg.segread(file)
        (study,) = [study for study in studies if study.study == segmentation.StudyInstanceUID]
        beside = json.loads(file.with_suffix(".json").read_text())
        assert beside["map"] == file.name
        voxel = abs(np.linalg.det(study.affine[:3, :3])) / 1000
        frames = segmentation.pixel_array.reshape(-1, segmentation.Rows, segmentation.Columns)
        groups = segmentation.PerFrameFunctionalGroupsSequence
        of = np.array([g.SegmentIdentificationSequence[0].ReferencedSegmentNumber for g in groups])
        for number, name in enumerate(("RV", "Myo", "LV"), start=1):
            expected = voxel * frames[of == number].sum()
            assert beside["classes"][name]["ml"] == pytest.approx(expected, abs=1e-3)
