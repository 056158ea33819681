"""The runs of a report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bundle.report.runs import Run, find_runs
from bundle.workflows import CONFIGS


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


@pytest.mark.parametrize("option", ["mirorring", "train#max_epochs"])
def test_an_option_that_nothing_reads_is_named(option: str, tmp_path: Path) -> None:
    place = str(folder(tmp_path / "run"))
    with pytest.raises(ValueError, match=f"^--{option}: no option of this command, and the config files have no id"):
        find_runs(place, (), "best", "val", None, {option: False})
    assert find_runs(place, (), "best", "val", None, {"mirroring": False, "method::threshold": 0.5})


def of(weights: Path, **overrides: Any) -> Run:
    """The run of some weights, on data of one's own."""
    (run,) = find_runs(str(weights.parent), str(CONFIGS / "datasets" / "custom.json"), "best", "val", None, overrides)
    return run


def test_predictions_with_other_options_of_the_record_are_others(trained: Callable[..., Path]) -> None:
    plain, same, mirrored = (of(trained(mirroring=value)) for value in (False, False, True))
    assert plain.digest == mirrored.digest, "the same weights"
    assert plain.settings == same.settings != mirrored.settings


def test_labels_of_some_images_of_a_patient_stay_those_of_the_training(
    trained: Callable[..., Path], tmp_path: Path
) -> None:
    """The record counts two labelled patients, of whom one has a visit without a label."""
    visits = [("a", 1, True), ("b", 1, True), ("b", 2, False), ("c", 1, False)]
    for name in ("a1", "b1", "b2", "c1", "label_a1", "label_b1"):
        nib.save(nib.Nifti1Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)), tmp_path / f"{name}.nii")
    entries = [
        {"image": f"{case}{visit}.nii", "case": case, **({"label": f"label_{case}{visit}.nii"} if known else {})}
        for case, visit, known in visits
    ]
    datalist = tmp_path / "datalist.json"
    datalist.write_text(json.dumps({"training": entries, "validation": []}))

    def labeled(count: int, **overrides: Any) -> list[str]:
        run = of(trained(labeled_cases=count), dataset_dir=str(datalist), **overrides)
        return [Path(record["image"]).stem for record in run.get("train#dataset#data") if "label" in record]

    assert labeled(2) == ["a1", "b1"]
    assert labeled(1) == ["a1"], "the record's number applies"
    assert labeled(2, labeled=1) == ["a1"], "the user's number has priority"
