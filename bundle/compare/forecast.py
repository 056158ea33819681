"""Forecast of the Dice with more labels: a power law fitted to the results with few labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["COVERAGE", "Forecast", "PowerLaw", "fit_power_law"]

COVERAGE = 0.9
"""Share of runs that a forecast's interval should contain."""

SMALLEST = 1e-3  # minimum of 1 - Dice: the logarithm of a perfect result is infinite


class Forecast(NamedTuple):
    """An expected Dice, and the interval for a single run."""

    dice: float
    low: float
    high: float


@dataclass(frozen=True)
class PowerLaw:
    """``1 - Dice = scale * labels ** -exponent``, fitted by least squares to the logarithms.

    Attributes:
        scale: 1 - Dice with one label.
        exponent: positive if labels help: with .3, twice as many labels leave .81 of the error.
        deviation: standard deviation of the logarithms of 1 - Dice around the law, with ``runs - 2`` degrees of
            freedom.
        runs: number of fitted runs.
        centre: mean of the logarithms of their numbers of labels.
        spread: sum of the squared distances of these from ``centre``.
    """

    scale: float
    exponent: float
    deviation: float
    runs: int
    centre: float
    spread: float

    def forecast(self, labels: float) -> Forecast:
        """Forecast for a run with this number of labels.

        The interval is Student's for one more observation of a linear regression. The law has no plateau, although
        errors of the labels cause one, so it is valid only up to a few times the present number of labels.
        """
        x = float(np.log(labels))
        middle = np.log(self.scale) - self.exponent * x
        width = self.deviation * np.sqrt(1 + 1 / self.runs + (x - self.centre) ** 2 / self.spread)
        half = float(stats.t.ppf((1 + COVERAGE) / 2, self.runs - 2)) * width
        dice, low, high = (1 - float(np.exp(value)) for value in (middle, middle + half, middle - half))
        return Forecast(max(0.0, dice), max(0.0, low), high)


def fit_power_law(labels: Sequence[float], dices: Sequence[float]) -> PowerLaw | None:
    """Fit the law to runs.

    Args:
        labels: number, or share, of labelled cases of each run, above 0.
        dices: mean Dice of each, in [0, 1].

    Returns:
        the law; None with fewer than three different numbers of labels.
    """
    if len(set(labels)) < 3:
        return None
    x = np.log(np.asarray(labels, dtype=float))
    y = np.log(np.maximum(1 - np.asarray(dices, dtype=float), SMALLEST))
    line = stats.linregress(x, y)
    residuals = y - line.intercept - line.slope * x
    deviation = float(np.sqrt((residuals**2).sum() / (len(x) - 2)))
    spread = float(((x - x.mean()) ** 2).sum())
    return PowerLaw(float(np.exp(line.intercept)), -float(line.slope), deviation, len(x), float(x.mean()), spread)
