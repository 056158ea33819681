from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot fork, and each command would load PyTorch anew")
def test_commands_of_the_pages_run(tmp_path: Path) -> None:
    """Those of the README; with SEMSIM_SLOW=1 all. A process of its own, as pytest's threads should meet no fork."""
    pages = [] if "SEMSIM_SLOW" in os.environ else ["--only", "README.md"]
    line = [sys.executable, "-m", "tests.documented", tmp_path / "pages", *pages]
    done = subprocess.run(line, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    outcomes = [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("right", "left out"))]
    assert outcomes.count("right") > outcomes.count("left") > 0
