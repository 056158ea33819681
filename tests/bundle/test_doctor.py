"""The doctor: all lines are printed, correct if they can be checked, and with a reason if they have no result."""

from __future__ import annotations

import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from bundle.__main__ import main
from bundle.doctor import _length
from bundle.workflows import CONFIGS
from scripts.data import SemiSupervisedLoader
from tests.workflows import workflow

NAMES = ["bundle", "system", "packages", "device", "precision", "memory", "disk"]
NAMES += ["data, train", "data, validate", "training", "time"]


def ask(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, str]:
    main(["doctor", "--device=cpu", "--image_size=32", "--batch_size=2", *options])
    lines = [re.split(r"\s{2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return dict(lines)


def test_it_tells_what_a_training_would_do(phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = {"dataset_dir": str(phantom), "splits": str(phantom / "splits.json"), "cache_dir": str(tmp_path / "cache")}
    told = ask(capsys, "--labeled=2", *(f"--{key}={value}" for key, value in places.items()))
    assert list(told) == NAMES
    assert f"torch {torch.__version__.partition('+')[0]}" in told["packages"]
    assert told["device"].startswith("cpu: ")
    assert told["data, train"] == "6 cases, 12 images; labelled 2 cases, 4 images"
    assert told["data, validate"] == "2 cases, 4 images; labelled 2 cases, 4 images"
    assert not (tmp_path / "cache").exists(), "nothing is written"
    # the number of steps of a training, which preprocesses the volumes to determine it
    flow = workflow("train", "train.json", labeled=2, image_size=32, batch_size=2, output_dir=str(tmp_path), **places)
    loader: SemiSupervisedLoader = flow.parser.get_parsed_content("train#dataloader")
    assert told["training"].startswith("SemSim, 32 px, 2 labelled and as many unlabelled slices a step, ")
    assert told["training"].endswith(f"{300 * len(loader):,} steps")
    assert re.match(r"\d+\.\d\d s a step \(the fastest of 3, random images\), \d+\.\d h for all of them", told["time"])


def test_what_is_missing_does_not_hide_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = ask(capsys, f"--dataset_dir={tmp_path / 'none'}", "--steps=0", "--train#trainer#epoch_length=7")
    assert list(told) == NAMES
    assert told["data, train"].startswith("not known: dataset_dir ")
    assert told["training"].endswith("2,100 steps")
    assert told["time"] == "not measured"


def test_steps_are_counted_along_the_slice_axis(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((12, 21, 33), np.float32), np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii")
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "train.json"))
    parser.update({"train#dataset#data": [{"image": str(tmp_path / "a.nii")}], "epochs": 3, "batch_size": 4})
    for axis, slices in {"sagittal": 12, "coronal": 21, "axial": 33}.items():
        parser.update({"slice_axis": axis})
        assert _length(parser) == 3 * -(-slices // 4)


@pytest.mark.parametrize("option", ["labelled", "train#max_epochs", "train::optimizr::lr"])
def test_an_option_that_nothing_reads_is_named(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", f"--{option}=3"])
    assert f"error: --{option}: no option of this command, and the config files have no id" in capsys.readouterr().err


def test_a_config_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--config_file=none.json"])
    assert "config_file: no file none.json." in capsys.readouterr().err
