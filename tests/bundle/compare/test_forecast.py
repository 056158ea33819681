"""The learning curve of a comparison: its law, its forecast and its runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import curve_fit

from bundle.compare.forecast import COVERAGE, fit_power_law
from bundle.compare.results import tables
from bundle.compare.runs import labeled_counts, plan
from scripts.metrics import MEASURES


def test_a_law_without_noise_is_found_and_continued() -> None:
    labels = [1, 2, 3, 5, 7]
    law = fit_power_law(labels, [1 - 0.4 * n**-0.5 for n in labels])
    assert law is not None
    assert (law.scale, law.exponent) == (pytest.approx(0.4), pytest.approx(0.5))
    assert law.forecast(14) == pytest.approx((1 - 0.4 * 14**-0.5,) * 3, abs=1e-9)


def test_fit_and_interval_equal_those_of_the_linear_regression() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([1, 2, 3, 5, 7], 3)
    dices = 1 - 0.4 * labels**-0.4 * np.exp(0.1 * random.normal(size=labels.size))
    law = fit_power_law(labels.tolist(), dices.tolist())
    assert law is not None
    (slope, cut), covariance = curve_fit(lambda x, a, b: a * x + b, np.log(labels), np.log(1 - dices))
    x = np.array([np.log(14), 1.0])
    residuals = np.log(1 - dices) - slope * np.log(labels) - cut
    deviation = np.sqrt(x @ covariance @ x + (residuals**2).sum() / (labels.size - 2))
    found = law.forecast(14)
    assert found.dice == pytest.approx(1 - np.exp(x @ [slope, cut]), abs=1e-6)
    width = np.log(1 - found.low) - np.log(1 - found.dice)
    assert width == pytest.approx(1.7709 * deviation, rel=1e-3)  # Student's t, 13 degrees of freedom, 95 %


def test_interval_holds_its_share_of_runs() -> None:
    random = np.random.default_rng(1)
    labels = [1, 1, 2, 2, 3, 3, 5, 5]

    def run(n: int) -> float:
        return float(1 - 0.4 * n**-0.4 * np.exp(0.1 * random.normal()))

    held = []
    for _ in range(400):
        law = fit_power_law(labels, [run(n) for n in labels])
        assert law is not None
        held.append(law.forecast(10).low <= run(10) <= law.forecast(10).high)
    assert np.mean(held) == pytest.approx(COVERAGE, abs=0.04)


def test_two_numbers_of_labels_make_no_curve_and_perfect_runs_are_no_error() -> None:
    assert fit_power_law([1, 2, 2], [0.5, 0.6, 0.7]) is None
    law = fit_power_law([1, 2, 3], [1.0, 1.0, 1.0])
    assert law is not None
    assert law.forecast(6).dice == pytest.approx(0.999)


def test_every_number_of_labels_is_a_run_of_its_own() -> None:
    runs = plan("supervised", "0,1", "default", (), {}, labeled_counts("1,3,0.5"))
    assert [(run.labeled, run.seed) for run in runs] == [(n, seed) for n in (1, 3, 0.5) for seed in (0, 1)]
    assert [run.name for run in runs][::2] == [f"supervised-default-labeled{n}-seed0" for n in ("1", "3", "0.5")]
    for run in runs:
        assert {config["labeled"] for config in run.configs.values()} == {run.labeled}
    (run,) = plan("supervised", 0, "default", (), {"labeled": 3}, labeled_counts(None))
    assert run.name == "supervised-default-seed0", "folders of earlier comparisons go on"


@pytest.mark.parametrize("value", ["a", "0", "-1", "1.5", "1,two", (1, 2.5)])
def test_labels_are_counted_in_cases(value: Any) -> None:
    with pytest.raises(ValueError, match="labeled: expected numbers of labelled cases"):
        labeled_counts(value)


def test_an_ablation_of_the_labels_leaves_no_curve() -> None:
    with pytest.raises(ValueError, match="labeled: set for all runs, but an ablation changes it"):
        plan("supervised", 0, "labeled=1", (), {}, [1, 2])


def row(labeled: int, dice: float) -> dict[str, Any]:
    scores = {f"{name}_{m}": dice for name in ("best", "last") for m in MEASURES}
    scores |= {f"{name}_one_empty": 0 for name in ("best", "last")}
    about = {"method": "semsim", "overlay": "default", "seed": 0, "labeled": labeled, "command": "compare"}
    return {**about, "image_size": 128, "iterations": 100, "seconds": None, **scores}


def test_table_has_the_forecast_and_its_test() -> None:
    dices = {n: 1 - 0.4 * n**-0.5 for n in (1, 2, 3)}
    text = tables([row(n, dice) for n, dice in dices.items()], "val", "compare")
    (line,) = (line for line in text.partition("### Learning curve")[2].splitlines() if "semsim" in line)
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:6] == ["1: 0.600, 2: 0.717, 3: 0.769", "0.400 n^-0.50", "6: 0.837 (0.837 to 0.837)"]
    assert cells[6] == "", "two numbers of labels are too few to foresee the third"
    text = tables([row(n, 1 - 0.4 * n**-0.5) for n in (1, 2, 3, 7)], "val", "compare")
    assert "| 7: 0.849 (0.849 to 0.849) |" in text
    assert "Learning curve" not in tables([row(1, 0.5), row(2, 0.6)], "val", "compare")
