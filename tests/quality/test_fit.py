from __future__ import annotations

import numpy as np
import pytest

from scripts.quality.fit import COVERAGE, FEWEST, DiceFit, fit_dice


def cases(count: int = 40, seed: int = 0) -> tuple[list[float], list[float], list[str]]:
    """Scores, Dice that increases with them plus noise, and patients of two images each."""
    random = np.random.default_rng(seed)
    scores = random.uniform(0.2, 0.9, count)
    dices = np.clip(scores**0.5 + 0.05 * random.normal(size=count), 0, 1)
    return scores.tolist(), dices.tolist(), [f"p{i // 2}" for i in range(count)]


def test_levels_are_those_of_isotonic_regression() -> None:
    isotonic = pytest.importorskip("sklearn.isotonic", reason="scikit-learn comes with the extra `report`")
    scores, dices, names = cases()
    fit = fit_dice(scores, dices, names)
    assert fit is not None
    levels = isotonic.IsotonicRegression().fit_transform(scores, dices)
    assert fit.dices[0] == fit.scores[0] == 0
    assert fit.dices[1:] == pytest.approx(np.unique(levels), abs=1e-9)
    centres = [np.mean(np.asarray(scores)[levels == level]) for level in np.unique(levels)]
    assert fit.scores[1:] == pytest.approx(centres, abs=1e-9)


def test_prediction_rises_and_stays_between_0_and_1() -> None:
    fit = fit_dice(*cases())
    assert fit is not None
    predictions = [fit(score) for score in np.linspace(0, 1, 50)]
    assert predictions[0].dice == 0
    assert all(0 <= p.low <= p.dice <= p.high <= 1 for p in predictions)
    assert (np.diff([p.dice for p in predictions]) >= 0).all()


def test_interval_holds_its_share_of_new_cases() -> None:
    held = []
    for seed in range(20):
        fit = fit_dice(*cases(seed=seed))
        assert fit is not None
        scores, dices, _ = cases(seed=100 + seed)
        held += [fit(score).low <= true <= fit(score).high for score, true in zip(scores, dices, strict=True)]
    assert COVERAGE - 0.05 < np.mean(held) < 1


def test_error_is_that_on_cases_left_out_with_all_their_images() -> None:
    scores, dices, names = cases(12)
    fit = fit_dice(scores, dices, names)
    assert fit is not None
    errors = []
    for left_out in sorted(set(names)):
        kept = [i for i, name in enumerate(names) if name != left_out]
        other = fit_dice([scores[i] for i in kept], [dices[i] for i in kept], [names[i] for i in kept])
        assert other is not None
        errors += [abs(other(scores[i]).dice - dices[i]) for i in range(12) if i not in kept]
    assert fit.error == pytest.approx(np.mean(errors), abs=1e-9)
    assert (fit.cases, fit.values) == (6, 12)


def test_too_few_cases_give_no_fit() -> None:
    scores, dices, _ = cases(2 * FEWEST)
    assert fit_dice(scores, dices, ["same"] * 2 * FEWEST) is None
    assert fit_dice(scores[: FEWEST - 1], dices[: FEWEST - 1], list("abcd")) is None


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_cases_that_are_all_alike(value: float) -> None:
    fit = fit_dice([value] * 6, [0.8] * 6, list("abcdef"))
    assert fit is not None
    assert fit(value).dice == pytest.approx(0.8 if value else 0.0)


def test_record_keeps_the_fit() -> None:
    fit = fit_dice(*cases())
    assert fit is not None
    again = DiceFit.from_record(fit.to_record())
    assert again(0.4) == pytest.approx(fit(0.4), abs=1e-5)


@pytest.mark.parametrize(
    "change",
    [{"scores": [0.0, 0.5, 0.4]}, {"dices": [0.0, 0.7, 0.6]}, {"dices": [0.0, 0.7]}, {"scores": [], "dices": []}],
)
def test_line_that_does_not_rise_is_refused(change: dict) -> None:
    entry = {"scores": [0.0, 0.3, 0.6], "dices": [0.0, 0.5, 0.9], "margin": 0.4, "error": 0.05, "cases": 5, "values": 9}
    assert DiceFit.from_record(entry)(0.3).dice == 0.5
    with pytest.raises(ValueError, match="expected scores and dices that rise"):
        DiceFit.from_record({**entry, **change})
