from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.data import make_phantom_cohort


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom cohort, 6 train, 2 val and 2 test patients, with its ``splits.json``. Do not write in it."""
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    make_phantom_cohort(root, patients=(6, 2, 2), size=(56, 72), spacing=(3.0, 3.6), slices=(3, 4))
    return root


@pytest.fixture(scope="session")
def real_acdc() -> Path:
    """The real ACDC folder."""
    root = os.environ.get("SEMSIM_DATA")
    if not root:
        pytest.skip("SEMSIM_DATA not set")
    if not (folder := Path(root) / "acdc").is_dir():
        pytest.skip(f"no acdc folder in SEMSIM_DATA={root}")
    return folder
