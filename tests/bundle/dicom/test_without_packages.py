"""Where the extra ``dicom`` is not installed: DICOM ends in one line that says so, and all else works."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bundle.workflows import ROOT
from tests.dicom_study import Study, write

# Modules that are not to be imported, then what a user types as a module with its arguments.
PROGRAM = """
import json, runpy, sys
sys.modules.update(dict.fromkeys(("pydicom", "highdicom", "pylibjpeg", "openjpeg", "libjpeg", "dicomweb_client")))
sys.argv = ["", *json.loads(sys.argv[1])]
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
INFERENCE = ["monai.bundle", "run", "--config_file", "configs/inference.json", "--device", "cpu"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("what", ["import", "send", "images", "results"])
def test_dicom_ends_in_a_line_that_names_the_extra(tmp_path: Path, phantom: Path, what: str) -> None:
    (file, *_) = write(Study(phases=1).cine(), tmp_path / "in")
    image = str(next(phantom.glob("*/*_frame??.nii.gz")))
    out = str(tmp_path / "out")
    commands = {
        "import": ["bundle", "import", "--source", str(tmp_path / "in"), "--output", out],
        "send": ["bundle", "send", str(file), "--url", "http://127.0.0.1:1/dicom-web"],
        "images": [*INFERENCE, "--dataset_dir", str(tmp_path / "in"), "--output_dir", out],
        "results": [*INFERENCE, "--dataset_dir", image, "--output_dir", out, "--output_ext", ".dcm"],
    }
    done = run(*commands[what])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "DICOM needs the extra 'dicom', which is not installed" in last
    assert "pip install pydicom highdicom" in last


def test_all_else_works(tmp_path: Path, phantom: Path) -> None:
    weights = tmp_path / "run" / "model.pt"
    given = ["--dataset_dir", str(phantom), "--splits", str(phantom / "splits.json"), "--image_size", "32"]
    given += ["--cache_dir", str(tmp_path / "cache"), "--device", "cpu", "--labeled", "2"]
    steps = ["--epochs", "1", "--train#trainer#epoch_length", "2", "--batch_size", "2"]
    method = "['configs/train.json','configs/methods/semsim_minus.json']"
    trained = run("monai.bundle", "run", "--config_file", method, *given, *steps, "--output_dir", str(weights.parent))
    assert trained.returncode == 0, trained.stderr[-2000:]
    image = str(next(phantom.glob("*/*_frame??.nii.gz")))
    options = ["--dataset_dir", image, "--checkpoint", str(weights), "--output_dir", str(tmp_path / "out")]
    assert run(*INFERENCE, *options).returncode == 0
    assert len(list((tmp_path / "out").rglob("*_seg.nii.gz"))) == 1
    packed = run("bundle", "pack", "--dataset", "acdc", "--weights", str(weights), "--output", str(tmp_path / "packed"))
    assert packed.returncode == 0, packed.stderr[-2000:]
