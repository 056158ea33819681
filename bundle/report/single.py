"""The sections of a page about one run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bundle.report import charts
from bundle.report.curves import curve_charts
from bundle.report.evaluation import MEAN
from bundle.report.findings import cardiac_blocks, problem_blocks, problem_lists
from bundle.report.network import network_blocks
from bundle.report.page import (
    Block,
    Card,
    Cards,
    Cell,
    Chart,
    Charts,
    Details,
    Key,
    Note,
    Section,
    Strip,
    Table,
    Text,
    number,
    text,
)
from bundle.report.pictures import case_pictures
from bundle.report.subject import DIGITS, Subject, case_id, known, picked, plural
from scripts.handlers.report import CHOSEN
from scripts.utils.licences import recorded_licenses

__all__ = ["sections"]

SLICES = 12  # of a case


def sections(subject: Subject, tick: Callable[[str], None]) -> list[Section]:
    """All sections of the page.

    Args:
        subject: subject of the page.
        tick: called with the name of each part before it is made.
    """
    tick("scores")
    found = problem_lists(subject)
    listed = [Section("Summary", summary(subject)), Section("Scores", score_blocks(subject))]
    tick("pictures")
    listed.append(Section("Best, median and worst", example_blocks(subject)))
    listed.append(Section("Cases", case_blocks(subject, {p.case for problem in found for p in problem[1]})))
    listed.append(Section("Volumes and ejection fraction", cardiac_blocks(subject)))
    listed.append(Section("What went wrong", problem_blocks(subject, found)))
    tick("curves")
    listed.append(Section("Training", curve_charts({subject.run.name: subject.run.folder})))
    return [*listed, Section("What the network sees", network_blocks({subject.run.name: subject}, tick))]


def summary(subject: Subject) -> list[Block]:
    """Cards of the main figures, warnings about them, and the provenance of the weights."""
    scores, record = subject.scores, subject.run.record
    dice = scores.values[MEAN]["dsc"]
    one_empty = int(sum(scores.values[name]["one_empty"].sum() for name in scores.classes))
    cards = [
        Card("mean DSC", f"{dice.mean():.3f}", f"± {dice.std():.3f} over {_count(len(dice), subject)}"),
        *(
            Card(
                title,
                f"{np.nanmean(values):.{DIGITS[key]}f}",
                f"{subject.unit}, ± {np.nanstd(values):.{DIGITS[key]}f}",
            )
            for key, title in (("hd95", "mean HD95"), ("assd", "mean ASSD"))
            if not np.isnan(values := subject.distance(MEAN, key)).all()
        ),
        Card("lowest DSC of a case", f"{dice.min():.3f}", subject.titles[int(dice.argmin())]),
        Card("empty on one side", str(one_empty), f"of {len(dice) * len(scores.classes)} masks, prediction or label"),
    ]
    blocks: list[Block] = [Cards(cards)]
    if scores.about and subject.run.part == "val" and "validation_dice" in record:
        blocks.append(Note(CHOSEN))
    if not subject.in_mm and subject.cases[0].spacing is not None:
        blocks.append(Note("These volumes have no reliable spacing: distances are in voxels."))
    if subject.took_voxels_for_mm:
        blocks.append(
            Note("The evaluation used voxels as millimetres, without the files' spacing: distances are in voxels.")
        )
    if not record:
        blocks.append(Note("The provenance of these weights is not recorded."))
    known = {
        "method": ("method", "fusion"),
        "network": ("network",),
        "data": ("data", "split"),
        "labelled": ("labeled_cases", "labeled_slices"),
        "unlabelled": ("unlabeled_cases", "unlabeled_slices"),
        "iterations": ("iteration", "iterations"),
        "image size, px": ("image_size",),
        "seed": ("seed",),
        "precision": ("precision",),
        "code": ("code",),
    }
    suffix = {"labeled_cases": " cases", "labeled_slices": " slices", "unlabeled_cases": " cases"}
    suffix |= {"unlabeled_slices": " slices", "iterations": " planned"}
    rows = [
        [
            text(title),
            text(", ".join(f"{record[key]}{suffix.get(key, '')}" for key in keys if key in record), long=True),
        ]
        for title, keys in known.items()
        if any(key in record for key in keys)
    ]
    if licenses := recorded_licenses(record):
        rows.append([text("licence of the data"), text("; ".join(licenses), long=True)])
    rows.append([text("weights, SHA-256"), text(subject.run.digest, long=True)])
    blocks.append(Table(["", "trained weights"], rows, sortable=False))
    return blocks


def _count(number_of: int, subject: Subject) -> str:
    return plural(number_of, "volume" if subject.cases[0].spacing else "image")


def score_blocks(subject: Subject) -> list[Block]:
    """Scores per class, as a table and as box plots."""
    scores = subject.scores
    names = [*scores.classes, MEAN]
    measures = {"dsc": "DSC", "hd95": f"HD95, {subject.unit}", "assd": f"ASSD, {subject.unit}"}
    every = {
        key: {name: scores.values[name]["dsc"] if key == "dsc" else subject.distance(name, key) for name in names}
        for key in measures
    }
    rows = []
    for name in names:
        row = [text(name)]
        for key in measures:
            values, digits = every[key][name], DIGITS[key]
            worst = np.nanmin if key == "dsc" else np.nanmax
            mean = float(np.nanmean(values))
            row.append(Cell(f"{mean:.{digits}f} ± {np.nanstd(values):.{digits}f}", mean))
            row += [number(float(value), digits) for value in (np.nanmedian(values), worst(values))]
        rows.append(
            [*row, *(Cell(str(int(scores.values[name][count].sum()))) for count in ("one_empty", "both_empty"))]
        )
    titles = [word for title in measures.values() for word in (f"{title}, mean ± SD", "median", "worst")]
    colours = [*subject.run.colours.values(), "#5b6775"]
    return [
        Table(
            ["class", *titles, "one empty", "both empty"],
            rows,
            "Evaluated on the files' own grid, volumes in 3D; SD of the population. One empty: only prediction or "
            "label has the class; then DSC is 0 and the distances are the volume's diagonal.",
        ),
        Charts(
            [
                Chart(
                    charts.boxes(
                        every[key],
                        title.partition(",")[0],
                        "DSC" if key == "dsc" else subject.unit,
                        colours,
                        1.02 if key == "dsc" else None,
                    )
                )
                for key, title in measures.items()
            ]
        ),
    ]


def _strip(subject: Subject, index: int, title: str, width: int, most: int = SLICES, id_: str = "") -> Strip:
    case, scores = subject.cases[index], subject.scores
    dice = ", ".join(f"{name} {scores.values[name]['dsc'][index]:.3f}" for name in (MEAN, *scores.classes))
    pictures = case_pictures(case, list(subject.run.colours.values()), most, width)
    return Strip(title, f"DSC: {dice}", pictures, id_)


def example_blocks(subject: Subject) -> list[Block]:
    """The best, the median and the worst case by mean DSC."""
    order = subject.order
    chosen: dict[int, str] = {}  # with few cases one may be both the best and the worst
    for title, index in (("Best", order[-1]), ("Worst", order[0]), ("Median", order[(len(order) - 1) // 2])):
        chosen.setdefault(index, title)
    wide = 1 if len(subject.cases[0].label) == 1 else 6
    strips = [
        _strip(subject, index, f"{title}: {subject.titles[index]}", 174 if wide == 6 else 360, wide)
        for index, title in sorted(chosen.items(), key=lambda item: -order.index(item[0]))
    ]
    return [
        Text(
            "By the mean DSC over the classes. The view is cropped to the foreground; for volumes, the patient's left "
            "is on the right."
        ),
        Key(list(subject.run.colours.items())),
        *strips,
    ]


def case_blocks(subject: Subject, odd: set[int]) -> list[Block]:
    """The table of all cases, and their pictures."""
    scores, cases = subject.scores, subject.cases
    shown = set(picked(subject))
    titles = [
        "case",
        "DSC",
        *(f"DSC {name}" for name in scores.classes),
        f"HD95, {subject.unit}",
        f"ASSD, {subject.unit}",
    ]
    unit = "mL" if subject.in_mm else "voxels" if cases[0].spacing else "pixels"
    for name in scores.classes:
        titles += [f"{name}, {unit}", f"{name} predicted"]
    rows = []
    for index, case in enumerate(cases):
        row = [text(subject.titles[index], case_id(index) if index in shown else "")]
        for name in (MEAN, *scores.classes):
            dice = float(scores.values[name]["dsc"][index])
            row += [number(dice, 3, warn=name == MEAN and index in odd)]
        row += [number(known(subject.distance(MEAN, key)[index]), DIGITS[key]) for key in ("hd95", "assd")]
        for c in range(1, len(scores.classes) + 1):
            counts = (float(case.labeled[c]), float(case.predicted[c]))
            row += [number(n * case.millilitres, 1) if subject.in_mm else number(n, 0) for n in counts]
        rows.append(row)
    some = (
        ""
        if len(shown) == len(cases)
        else f" Pictures of {len(shown)} cases: the worst, the best and some between them."
    )
    caption = "Click a title to sort. Marked: cases that are named under What went wrong." + some
    wide = 86 if len(cases[0].label) > 1 else 150
    strips = [_strip(subject, i, subject.titles[i], wide, id_=case_id(i)) for i in sorted(shown)]
    return [Table(titles, rows, caption), Details(f"Pictures of {plural(len(shown), 'case')}", strips)]
