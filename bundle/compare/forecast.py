"""What more labels would buy: a power law through the results with few labels, and its forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["COVERAGE", "Forecast", "PowerLaw", "fit_power_law"]

COVERAGE = 0.9
"""Share of runs that a forecast's interval is meant to hold."""

SMALLEST = 1e-3  # of 1 - Dice: a perfect result has no logarithm


class Forecast(NamedTuple):
    """A Dice that is expected, and the interval for a single run's."""

    dice: float
    low: float
    high: float


@dataclass(frozen=True)
class PowerLaw:
    """``1 - Dice = scale * labels ** -exponent``, fitted by least squares to the logarithms.

    Attributes:
        scale: 1 - Dice with one label.
        exponent: positive where labels help: .3 says that twice as many leave .81 of the error.
        deviation: standard deviation of the logarithms of 1 - Dice around the law, with ``runs - 2`` degrees of
            freedom.
        runs: how many runs it was fitted to.
        centre: mean of the logarithms of their numbers of labels.
        spread: sum of the squared distances of those from ``centre``.
    """

    scale: float
    exponent: float
    deviation: float
    runs: int
    centre: float
    spread: float

    def forecast(self, labels: float) -> Forecast:
        """What a run with so many labels is expected to reach.

        The interval is Student's for one more observation of a linear regression. The law has no plateau: labels' own
        errors, which set one, are not seen in it, so that it means little beyond a few times the labels at hand.
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
