"""Prediction of the Dice from the agreement: a monotone fit on validation cases, with an interval from its errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

__all__ = ["COVERAGE", "FEWEST", "DiceFit", "Prediction", "fit_dice"]

COVERAGE = 0.9
"""Share of new cases whose Dice the interval should contain."""

FEWEST = 5
"""Minimum number of validation cases (patients) for a fit."""


class Prediction(NamedTuple):
    """A predicted Dice and the interval around it, all in [0, 1]."""

    dice: float
    low: float
    high: float


@dataclass(frozen=True)
class DiceFit:
    """A monotone piecewise linear function from agreement score to Dice.

    Attributes:
        scores: scores of the knots, increasing, in [0, 1]; the first is 0, at Dice 0.
        dices: Dice of the knots, not decreasing, in [0, 1].
        margin: half the interval's width divided by ``1 - predicted Dice + 0.05``, because errors shrink towards Dice
            1.
        error: mean absolute error on left-out cases (leave-one-case-out).
        cases: number of cases.
        values: number of pairs of score and Dice.
    """

    scores: tuple[float, ...]
    dices: tuple[float, ...]
    margin: float
    error: float
    cases: int
    values: int

    def __call__(self, score: float) -> Prediction:
        """The predicted Dice of an agreement score."""
        dice = float(np.interp(score, self.scores, self.dices))
        half = self.margin * _spread(dice)
        return Prediction(dice, max(0.0, dice - half), min(1.0, dice + half))

    def to_record(self) -> dict[str, Any]:
        """Rounded plain values for the record of the weights."""
        return {name: _rounded(value) for name, value in asdict(self).items()}

    @classmethod
    def from_record(cls, entry: Mapping[str, Any]) -> DiceFit:
        """The fit in a record, whose schema has been checked.

        Raises:
            ValueError: if it is not monotone; the message does not name the record.
        """
        scores, dices = (np.asarray(entry[name], dtype=float) for name in ("scores", "dices"))
        if not len(scores) or len(scores) != len(dices) or (np.diff(scores) <= 0).any() or (np.diff(dices) < 0).any():
            raise ValueError("expected scores and dices that rise, as many of one as of the other")
        numbers = (entry[name] for name in ("margin", "error", "cases", "values"))
        return cls(tuple(scores.tolist()), tuple(dices.tolist()), *numbers)


def fit_dice(scores: Sequence[float], dices: Sequence[float], cases: Sequence[str]) -> DiceFit | None:
    """Fit a Dice that rises with the agreement.

    Isotonic regression (pool adjacent violators) gives levels; a line through their centres keeps the order of cases
    within a level (centred isotonic regression, Oron and Flournoy 2017). It starts at score 0 and Dice 0, the case of
    passes that share no voxel. The interval comes from the errors on left-out cases, as in the jackknife (Barber et
    al., "Predictive inference with the jackknife+"): their quantile for :data:`COVERAGE` of new cases.

    Args:
        scores: agreement of a class in an image, in [0, 1].
        dices: its true Dice, in [0, 1].
        cases: its case. All values of a case, for example of a patient's two images, are left out together.

    Returns:
        the fit; None with fewer than :data:`FEWEST` cases.
    """
    x, y, group = np.asarray(scores, float), np.asarray(dices, float), np.asarray(cases)
    names = np.unique(group)
    if len(names) < FEWEST:
        return None
    predicted = np.empty_like(y)
    for name in names:
        left_out = group == name
        predicted[left_out] = np.interp(x[left_out], *_line(x[~left_out], y[~left_out]))
    errors = np.abs(predicted - y)
    scaled = np.sort(errors / _spread(predicted))
    margin = scaled[min(math.ceil((len(y) + 1) * COVERAGE), len(y)) - 1]
    knots, levels = _line(x, y)
    return DiceFit(
        tuple(knots.tolist()), tuple(levels.tolist()), float(margin), float(errors.mean()), len(names), len(y)
    )


def _line(scores: NDArray[np.float64], dices: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Knots of the centred isotonic regression, from (0, 0) on."""
    order = np.lexsort((dices, scores))
    x, fitted = scores[order], isotonic_regression(dices[order])
    begins = fitted.blocks[:-1]
    counts = np.diff(fitted.blocks)
    centres, levels = np.add.reduceat(x, begins) / counts, fitted.x[begins]
    # equal scores may lie in two levels; the centres must still increase
    rising = np.concatenate([[True], np.diff(centres) > 0]) & (centres > 0)
    return np.concatenate([[0.0], centres[rising]]), np.concatenate([[0.0], levels[rising]])


def _spread(dice: Any) -> Any:
    """The unit of the errors: they shrink towards Dice 1."""
    return 1.05 - dice


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [round(item, 6) for item in value]
    return round(value, 6) if isinstance(value, float) else value
