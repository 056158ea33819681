"""The sections on cardiac measurements and on problems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from bundle.report import cardiac, charts, problems
from bundle.report.evaluation import MEAN
from bundle.report.page import (
    Block,
    Cell,
    Chart,
    Charts,
    Heading,
    Note,
    Table,
    Text,
    number,
    text,
)
from bundle.report.subject import Subject, case_id, known, picked

__all__ = [
    "AGREEMENT",
    "AGREEMENT_RULE",
    "Measurement",
    "cardiac_blocks",
    "measurements",
    "problem_blocks",
    "problem_lists",
]

Values = NDArray[np.float64]
AGREEMENT = ("n", "bias", "lower limit", "upper limit", "mean absolute difference", "Pearson r")
"""Titles of :attr:`Measurement.cells`."""

AGREEMENT_RULE = (
    "Prediction minus label; limits of agreement: bias ∓ 1.96 SD (Bland and Altman 1986). A patient's two frames "
    "count as two volumes, which makes the limits of the volumes a little too narrow."
)


@dataclass(frozen=True)
class Measurement:
    """A quantity measured in the labels and in the predictions, where both are known.

    Attributes:
        title: its name.
        unit: its unit.
        labeled: values from the labels ``[N]``, N at least 2.
        predicted: values from the predictions ``[N]``.
        colour: its colour in charts.
    """

    title: str
    unit: str
    labeled: Values
    predicted: Values
    colour: str

    @cached_property
    def agreement(self) -> cardiac.Agreement:
        """Agreement of the predictions with the labels."""
        return cardiac.agreement(self.labeled, self.predicted)

    @property
    def cells(self) -> list[Cell]:
        """The cells of :data:`AGREEMENT`."""
        found = self.agreement
        return [
            number(found.count, 0),
            *(number(value, 1, sign=True) for value in (found.bias, *found.limits)),
            number(float(np.abs(self.predicted - self.labeled).mean()), 1),
            number(known(found.correlation), 3),
        ]


def measurements(subject: Subject) -> list[Measurement]:
    """Ejection fractions, if there are any, and volumes of every class; none without a reliable spacing."""
    cases, scores = subject.cases, subject.scores
    if not subject.in_mm:
        return []
    found: list[Measurement] = []

    def add(title: str, unit: str, labeled: Values, predicted: Values, colour: str) -> None:
        both = ~(np.isnan(labeled) | np.isnan(predicted))
        if both.sum() > 1:
            found.append(Measurement(title, unit, labeled[both], predicted[both], colour))

    if fractions := _ejections(subject):
        labeled, predicted = (np.array([getattr(f, side) for f in fractions]) for side in ("labeled", "predicted"))
        add("ejection fraction", "%", labeled, predicted, "#1f6feb")
    for c, (name, colour) in enumerate(zip(scores.classes, subject.run.colours.values(), strict=True), start=1):
        add(name, "mL", *cardiac.volumes(cases, c), colour)
    return found


def _ejections(subject: Subject) -> list[cardiac.Ejection]:
    ventricle = cardiac.left_ventricle(subject.scores.classes)
    return [] if ventricle is None else cardiac.ejections(subject.cases, ventricle)


def cardiac_blocks(subject: Subject) -> list[Block]:
    """Volumes of every class and ejection fractions, predicted and labelled."""
    if subject.cases[0].spacing is None:
        return []
    if not subject.in_mm:
        return [Text("Left out: volumes in mL need a reliable spacing in the files.")]
    if len(subject.cases) < 2:
        return [Text("Left out: agreement needs at least two volumes.")]
    found = measurements(subject)
    drawn = [
        Chart(charts.agreement_chart(one.labeled, one.predicted, one.agreement, one.title, one.unit, one.colour))
        for one in found
    ]
    rows = [[text(f"{one.title}, {one.unit}"), *one.cells] for one in found]
    blocks: list[Block] = [Table(["", *AGREEMENT], rows, AGREEMENT_RULE, sortable=False), Charts(drawn)]
    if fractions := _ejections(subject):
        blocks.append(_ejection_table(subject, fractions))
    return blocks


def _ejection_table(subject: Subject, fractions: Sequence[cardiac.Ejection]) -> Block:
    ventricle = cardiac.left_ventricle(subject.scores.classes)
    assert ventricle is not None  # otherwise there is no ejection fraction
    labeled, predicted = cardiac.volumes(subject.cases, ventricle)
    shown = set(picked(subject))
    rows = [
        [
            text(f.patient, case_id(f.diastole) if f.diastole in shown else ""),
            *(number(float(side[i]), 1) for side in (labeled, predicted) for i in (f.diastole, f.systole)),
            number(f.labeled, 1),
            number(known(f.predicted), 1),
            number(known(f.predicted - f.labeled), 1, sign=True),
        ]
        for f in fractions
    ]
    titles = ["patient", "EDV label, mL", "ESV label, mL", "EDV predicted, mL", "ESV predicted, mL"]
    titles += ["EF label, %", "EF predicted, %", "difference"]
    source = " and by ".join(sorted({f.source for f in fractions}))
    return Table(titles, rows, f"Left ventricle at end diastole (ED) and end systole (ES), told apart by {source}.")


def problem_lists(subject: Subject) -> list[tuple[str, Sequence[problems.Problem], str]]:
    """The kinds of problems: title, findings, and the reason if it was not checked."""
    cases, scores = subject.cases, subject.scores
    strange: Sequence[problems.Problem] = []
    reason = ""
    try:
        ranges = problems.training_ranges(subject.run)
        if not subject.in_mm:
            ranges = {key: r for key, r in ranges.items() if not problems.MEASURED[key][0]}
        strange = problems.unlike_training(cases, ranges)
    except (ValueError, FileNotFoundError) as error:
        reason = f"Not checked: {error}"
    return [
        ("Empty on one side", problems.empty_predictions(cases, scores.classes), ""),
        ("Outliers by DSC and by volume", problems.outliers(cases, scores), ""),
        ("Unlike the training images", strange, reason),
    ]


def problem_blocks(subject: Subject, found: Sequence[tuple[str, Sequence[problems.Problem], str]]) -> list[Block]:
    """Tables of problems, with links to the pictures."""
    rules = {
        "Outliers by DSC and by volume": "DSC below the first quartile minus 1.5 interquartile ranges of all cases; "
        f"predicted volumes of more than {problems.VOLUME_FACTOR:g} times the label's or less than "
        f"{1 / problems.VOLUME_FACTOR:.2f} times.",
        "Unlike the training images": "Mean and spread of the intensities, scaled from minimum to maximum, and, if "
        "the spacing is reliable, field of view and pixel in plane: more than 5 % outside the training images' range.",
    }
    shown = set(picked(subject))
    dice = subject.scores.values[MEAN]["dsc"]
    blocks: list[Block] = []
    for title, listed, reason in found:
        blocks.append(Heading(f"{title}: {len({p.case for p in listed})} of {len(subject.cases)} cases"))
        if title in rules:
            blocks.append(Text(rules[title]))
        if reason:
            blocks.append(Note(reason))
        reasons: dict[int, list[str]] = {}
        for problem in listed:
            reasons.setdefault(problem.case, []).append(problem.what)
        rows = [
            [
                text(subject.titles[i], case_id(i) if i in shown else ""),
                number(float(dice[i]), 3),
                text("; ".join(reasons[i]), long=True),
            ]
            for i in sorted(reasons, key=lambda i: dice[i])
        ]
        if rows:
            blocks.append(Table(["case", "mean DSC", "why"], rows))
    return blocks
