"""The runs of a report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundle.report.runs import find_runs


def folder(path: Path, overlay: str = "") -> Path:
    """A run's folder without content; with an overlay, a run of a comparison."""
    path.mkdir(parents=True)
    for name in ("model.pt", "model_last.pt"):
        (path / name).touch()
    if overlay:
        (path / "run.json").write_text(
            json.dumps({"method": "semsim", "overlay": overlay, "seed": 0, "command": "compare"})
        )
    return path


def test_runs_of_the_same_name_are_told_apart_by_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [folder(tmp_path / name) for name in ("exp1/output", "exp2/output", "exp2/other")]
    places += [folder(tmp_path / one / "semsim-default-seed0", "default").parent for one in ("long", "short")]
    folder(places[-1] / "semsim-table4-seed0", "table4")
    monkeypatch.chdir(tmp_path)
    runs = find_runs([*map(str, places), "exp1/output", "long/../long"], (), "best", "val", None, {})
    assert {run.name: run.folder.relative_to(tmp_path).as_posix() for run in runs} == {
        "exp1/output": "exp1/output",
        "exp2/output": "exp2/output",
        "other": "exp2/other",
        "long/semsim-default-seed0": "long/semsim-default-seed0",
        "short/semsim-default-seed0": "short/semsim-default-seed0",
        "semsim, table4, seed 0": "short/semsim-table4-seed0",
    }
    assert len(runs) == 6, "a repeated folder counts once"
