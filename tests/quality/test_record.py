from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.quality.fit import fit_dice
from scripts.quality.record import Calibration, fitted_temperature, read_calibration, write_calibration
from scripts.utils.provenance import read_record


def test_weights_without_calibration(trained: Callable[..., Path], tmp_path: Path) -> None:
    assert read_calibration(trained()) == read_calibration(tmp_path / "none.pt") == Calibration()
    assert fitted_temperature(trained()) == 1.0


def test_calibration_is_kept_beside_everything_else(trained: Callable[..., Path]) -> None:
    weights = trained()
    before = read_record(weights)
    fit = fit_dice([0.2, 0.4, 0.5, 0.7, 0.8], [0.3, 0.6, 0.6, 0.8, 0.9], list("abcde"))
    assert fit is not None
    calibration = Calibration(1.7, {2: fit}, {"dark": [0.0, 0.1]})
    write_calibration(weights, calibration, {"part": "val", "cases": 5})
    read = read_calibration(weights)
    assert (read.temperature, read.images) == (1.7, {"dark": [0.0, 0.1]})
    assert read.dice[2](0.45) == pytest.approx(fit(0.45), abs=1e-5)
    after = read_record(weights)
    assert after is not None
    assert after.pop("calibration")["cases"] == 5
    assert after == before


def test_weights_without_a_record_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    with pytest.raises(ValueError, match=r"'.*model\.pt' have no record"):
        write_calibration(tmp_path / "model.pt", Calibration(), {})


FIT = {"scores": [0, 0.5], "dices": [0, 0.7], "margin": 0.1, "error": 0.1, "cases": 5, "values": 5}


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ([1], "calibration"),
        ({"temperature": "2"}, "temperature"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"dice": {"1": {}}}, "dice"),
        ({"dice": [1]}, "dice"),
        ({"dice": {"1": {**FIT, "scores": [0, "0.5"]}}}, "scores"),
        ({"dice": {"1": {**FIT, "scores": [0, 1.5]}}}, "scores"),
        ({"dice": {"1": {**FIT, "scores": [0.5, 0.2]}}}, "calibration: dice: expected scores and dices that rise"),
        ({"images": {"dark": [2]}}, "images"),
        ({"images": {"other": [1, 2]}}, "images"),
    ],
)
def test_entry_of_another_kind_is_refused_by_name(trained: Callable[..., Path], entry: Any, key: str) -> None:
    weights = trained()
    path = weights.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibration": entry}))
    with pytest.raises(ValueError, match=key) as error:
        read_calibration(weights)
    assert str(path) in str(error.value)
