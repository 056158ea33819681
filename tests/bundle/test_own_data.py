"""The documented commands for a custom data set: prepare, train, evaluate, pack, verify, infer."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bundle.prepare.command import main as prepare
from bundle.share.pack import main as pack
from bundle.share.verify import verify
from bundle.workflows import execute

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = "'configs/train.json','configs/datasets/custom.json','configs/methods/fixmatch.json'"


def python(*words: object, folder: Path = ROOT) -> str:
    """Output of a command in the repository's folder, or in another, on an ASCII terminal."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    line = [sys.executable, *map(str, words)]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    """Six volumes with a bright block and labels with nnU-Net's names; the last one has none."""
    folder = tmp_path / "a set's [1], (%) & caf\u00e9 $HOME"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    affine = np.diag([-1.5, -1.5, 8, 1])
    for i in range(6):
        label = np.zeros((40, 48, 3), np.uint8)
        label[10 + i : 25, 12:30] = 1
        image = 80 * label + rng.normal(40, 8, label.shape)
        nib.save(nib.Nifti1Image(image.astype(np.int16), affine), folder / "imagesTr" / f"s{i}_0000.nii.gz")
        if i < 5:
            nib.save(nib.Nifti1Image(label, affine), folder / "labelsTr" / f"s{i}.nii.gz")
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps({**about, "numTraining": 5}))
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_from_a_folder_to_a_bundle(volumes: Path, tmp_path: Path, named: bool) -> None:
    """Classes have the same names in list, record, scores and bundle, with and without given names."""
    if not named:
        about = json.loads((volumes / "dataset.json").read_text())
        (volumes / "dataset.json").write_text(json.dumps({**about, "labels": {"background": 0}}))
    listed, run, scores, packed = (tmp_path / name for name in ("list.json", "run", "scores", "packed"))
    classes = [] if named else ["--num_classes", 2]
    python("-m", "bundle", "prepare", "custom", "--source", volumes, "--output", listed, *classes)
    given = ["--dataset_dir", listed, "--num_classes", 2, "--image_size", 48, "--cache_dir", tmp_path / "cache"]
    short = ["--batch_size", 2, "--train#trainer#max_epochs", 1, "--train#trainer#epoch_length", 2]
    run_monai = ("-m", "monai.bundle", "run")
    python(*run_monai, "training", "--config_file", f"[{CONFIGS}]", *given, *short, "--output_dir", run)
    evaluation = ["--config_file", f"[{CONFIGS},'configs/evaluate.json']", "--checkpoint", run / "model.pt"]
    printed = python(*run_monai, "evaluating", *evaluation, *given, "--output_dir", scores)
    assert "\\xb1" in printed, "what ASCII lacks is written in another way"
    python("-m", "bundle", "pack", listed, run / "model.pt", packed, "--evaluation", scores)
    (archive,) = packed.glob("*.zip")
    assert "No code of the bundle was executed" in python("-m", "bundle", "verify", archive)

    name = "ball" if named else "1"
    assert json.loads(listed.read_text())["labels"] == {"0": "background", "1": name}
    assert json.loads((run / "model.json").read_text())["class_names"] == {"1": name}
    with (scores / "summary.csv").open(newline="") as stream:
        assert [row["class"] for row in csv.DictReader(stream)] == [name, "mean"]
    (bundle,) = (path for path in packed.iterdir() if path.is_dir())
    assert json.loads((bundle / "configs" / "train.json").read_text())["class_names"] == {"1": name}


@pytest.mark.parametrize("channels", [2, 4])
def test_modalities_from_a_folder_to_a_bundle_and_back(tmp_path: Path, channels: int) -> None:
    """Volumes of several channels: the packed bundle alone segments them as the training's weights do."""
    folder, listed, run, scores, packed, alone, maps = (
        tmp_path / name for name in ("set", "list.json", "run", "scores", "packed", "alone", "maps")
    )
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        label = np.zeros((40, 48, 3), np.uint8)
        label[10 + i : 25, 12:30] = 1
        modalities = [10.0**c * (40 + 80 * label * (c % 2) + rng.normal(0, 8, label.shape)) for c in range(channels)]
        affine = np.diag([-1.5, -1.5, 8, 1])
        nib.save(nib.Nifti1Image(np.stack(modalities, -1).astype(np.float32), affine), folder / f"s{i}.nii.gz")
        if i < 3:
            nib.save(nib.Nifti1Image(label, affine), folder / f"s{i}_gt.nii.gz")
    prepare("custom", str(folder), str(listed), num_classes=2, in_channels=channels)
    files = ["train.json", "datasets/custom.json", "methods/fixmatch.json"]
    given = {"dataset_dir": str(listed), "num_classes": 2, "in_channels": channels, "image_size": 48, "device": "cpu"}
    given["cache_dir"] = str(tmp_path / "cache")
    steps = {"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2, "batch_size": 2}
    execute("train", files, **given, **steps, output_dir=str(run))
    weights = {"checkpoint": str(run / "model.pt")}
    execute("infer", [*files, "evaluate.json"], **given, **weights, output_dir=str(scores))
    pack(str(listed), weights["checkpoint"], str(packed), evaluation=str(scores))
    (archive,) = packed.glob("*.zip")
    assert [result for result in verify(archive) if result.fault] == []
    bundle = archive.with_name(archive.name.rpartition("_v")[0])
    image = json.loads((bundle / "configs" / "metadata.json").read_text())["network_data_format"]["inputs"]["image"]
    assert image["num_channels"] == channels == len(image["channel_def"])

    one = {"dataset_dir": str(folder / "s3.nii.gz"), "output_dir": str(maps)}
    settings = {"num_classes": 2, "in_channels": channels, "device": "cpu"}
    execute("infer", ["inference.json", "datasets/custom.json"], **settings, **weights, **one)
    line = ["-m", "monai.bundle", "run", "--config_file", "configs/inference.json", "--device", "cpu"]
    python(*line, "--dataset_dir", folder / "s3.nii.gz", "--output_dir", alone, folder=bundle)
    found, expected = (nib.load(place / "s3_seg.nii.gz") for place in (alone, maps))
    assert found.shape == (40, 48, 3)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
