"""The subject of a page: a run with its scores and cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.report.cases import Case
from bundle.report.evaluation import MEAN, Scores
from bundle.report.runs import Run

__all__ = ["DIGITS", "Subject", "case_id", "known", "picked", "plural", "shared_cases"]

DIGITS = {"dsc": 3, "hd95": 1, "assd": 2}
"""Number of decimals of a score."""

PICTURED = 60  # cases with pictures: for larger sets the worst, the best, and others evenly between them


@dataclass
class Subject:
    """A run with the data of its page.

    Attributes:
        run: the run.
        scores: scores of its evaluation.
        cases: the evaluated cases, in the same order.
        in_mm: whether the spacing is true: volumes are in mL, distances in mm.
    """

    run: Run
    scores: Scores
    cases: Sequence[Case]
    in_mm: bool

    @property
    def unit(self) -> str:
        """Unit of the distances."""
        if self.in_mm and not self.took_voxels_for_mm and self.scores.unit == "mm":
            return "mm"
        return "voxels" if self.cases[0].spacing else "pixels"

    @property
    def took_voxels_for_mm(self) -> bool:
        """Whether the evaluation did not know the files' spacing, so that its mm are voxels."""
        voxels, mm = (self.scores.values[MEAN][f"assd_{unit}"] for unit in ("voxels", "mm"))
        return self.in_mm and np.allclose(voxels, mm)

    def distance(self, name: str, measure: str) -> Any:
        """HD95 or ASSD (``hd95``, ``assd``) of a class in the unit, ``[cases]``."""
        return self.scores.values[name][f"{measure}_{'mm' if self.unit == 'mm' else 'voxels'}"]

    @property
    def titles(self) -> list[str]:
        """Names of the cases on the page: the last part of their path, if it is unique."""
        last = [name.rpartition("/")[2] for name in self.scores.cases]
        return last if len(set(last)) == len(last) else self.scores.cases

    @property
    def order(self) -> list[int]:
        """The cases by mean DSC, the worst first."""
        return [int(i) for i in np.argsort(self.scores.values[MEAN]["dsc"], kind="stable")]


def case_id(index: int) -> str:
    """The id of a case's pictures on the page."""
    return f"case-{index + 1}"


def plural(count: int, word: str) -> str:
    """A count with its noun."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def picked(subject: Subject) -> list[int]:
    """The cases with pictures: all, or for a large set the worst, the best and others evenly between them."""
    order = subject.order
    if len(order) <= PICTURED:
        return sorted(order)
    ends = PICTURED // 3
    between = np.linspace(ends, len(order) - ends - 1, PICTURED - 2 * ends).round().astype(int)
    return sorted({*order[:ends], *order[-ends:], *(order[i] for i in between)})


def shared_cases(subjects: Mapping[str, Subject]) -> list[str]:
    """Names of the cases that all have, from the worst to the best of the first by mean DSC."""
    first = next(iter(subjects.values()))
    names = set.intersection(*({case.name for case in one.cases} for one in subjects.values()))
    return [first.cases[i].name for i in first.order if first.cases[i].name in names]


def known(value: float) -> float | None:
    """The value, None if undefined."""
    return None if np.isnan(value) else float(value)
