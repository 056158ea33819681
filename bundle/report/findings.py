"""The sections on cardiac measurements and on problems."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bundle.report import cardiac, charts, problems
from bundle.report.evaluation import MEAN
from bundle.report.page import (
    Block,
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

__all__ = ["cardiac_blocks", "problem_blocks", "problem_lists"]


def cardiac_blocks(subject: Subject) -> list[Block]:
    """Volumes of every class and ejection fractions, predicted and labelled."""
    cases, scores = subject.cases, subject.scores
    if cases[0].spacing is None:
        return []
    if not subject.in_mm:
        return [Text("Left out: volumes in mL need a reliable spacing in the files.")]
    if len(cases) < 2:
        return [Text("Left out: agreement needs at least two volumes.")]
    colours = list(subject.run.colours.values())
    blocks: list[Block] = []
    drawn, rows = [], []

    def add(title: str, unit: str, label: Any, prediction: Any, colour: str) -> None:
        known = ~(np.isnan(label) | np.isnan(prediction))
        if known.sum() < 2:
            return
        label, prediction = label[known], prediction[known]
        found = cardiac.agreement(label, prediction)
        drawn.append(Chart(charts.agreement_chart(label, prediction, found, title, unit, colour)))
        error = float(np.abs(prediction - label).mean())
        cells = [number(value, 1, sign=True) for value in (found.bias, *found.limits)]
        correlation = None if np.isnan(found.correlation) else found.correlation
        rows.append(
            [text(f"{title}, {unit}"), number(found.count, 0), *cells, number(error, 1), number(correlation, 3)]
        )

    if (ventricle := cardiac.left_ventricle(scores.classes)) is not None:
        fractions = cardiac.ejections(cases, ventricle)
        if fractions:
            labeled, predicted = (np.array([getattr(f, side) for f in fractions]) for side in ("labeled", "predicted"))
            add("ejection fraction", "%", labeled, predicted, "#1f6feb")
            blocks.append(_ejection_table(subject, fractions, ventricle))
    for c, name in enumerate(scores.classes, start=1):
        add(name, "mL", *cardiac.volumes(cases, c), colours[c - 1])
    titles = ["", "n", "bias", "lower limit", "upper limit", "mean absolute difference", "Pearson r"]
    caption = (
        "Prediction minus label; limits of agreement: bias ∓ 1.96 SD (Bland and Altman 1986). A patient's two frames "
        "count as two volumes, which makes the limits of the volumes a little too narrow."
    )
    return [Table(titles, rows, caption, sortable=False), Charts(drawn), *blocks]


def _ejection_table(subject: Subject, fractions: Sequence[cardiac.Ejection], ventricle: int) -> Block:
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
