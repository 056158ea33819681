from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"kills": 8, "epochs": 12} if os.environ.get("SEMSIM_SLOW") else {"kills": 2, "epochs": 6}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_five_methods_that_are_killed_end_with_the_same_bits(tmp_path: Path) -> None:
    """A process of its own, as pytest's has threads that no fork should inherit."""
    line = [sys.executable, "-m", "tests.kills", tmp_path / "kills", *(f"--{name}={n}" for name, n in SIZES.items())]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    found = re.findall(r": equal after (\d) kills, with \[([\d, ]*)\] of", done.stdout)
    assert len(found) == 5
    assert all(int(kills) >= 1 for kills, _ in found), "a run was over before it could be killed"
    assert all(int(epochs.split(",")[-1]) >= 1 for _, epochs in found), "no kill came after an epoch"
