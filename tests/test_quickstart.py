"""The quickstart of the docs runs, with a shorter training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib

ROOT = Path(__file__).resolve().parents[1]


def test_every_cell_runs(tmp_path: Path) -> None:
    environment = {**os.environ, "QUICKSTART_OUTPUT": str(tmp_path), "QUICKSTART_EPOCHS": "1", "MPLBACKEND": "agg"}
    program = [sys.executable, str(ROOT / "docs" / "quickstart.py")]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    (segmented,) = tmp_path.glob("segmented/**/*_seg.nii.gz")
    image = next(tmp_path.glob(f"cohort/*/{segmented.name.replace('_seg', '')}"))
    assert nib.load(segmented).shape == nib.load(image).shape
    assert (len(list(tmp_path.glob("own/images/*"))), len(list(tmp_path.glob("own/labels/*")))) == (45, 5)
    report = (tmp_path / "run" / "val-best" / "report.html").read_text()
    assert "4 cases, " in report, "one of the five validates"
    assert "40 cases, " in report
    assert (tmp_path / "packed bundle.png").is_file()
