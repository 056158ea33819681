"""The sections of a page about one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bundle.report import cardiac, charts, features, problems
from bundle.report.cases import Case
from bundle.report.curves import curve_charts
from bundle.report.evaluation import MEAN, Scores
from bundle.report.page import (
    Block,
    Card,
    Cards,
    Cell,
    Chart,
    Charts,
    Details,
    Heading,
    Key,
    Note,
    Section,
    Strip,
    Table,
    Text,
    number,
    text,
)
from bundle.report.pictures import case_pictures, map_picture
from bundle.report.runs import Run
from scripts.handlers.report import CHOSEN

__all__ = ["Subject", "case_id", "picked", "plural", "sections"]

SLICES = 12  # of a case
PICTURED = 60  # cases with pictures: of larger sets the worst, the best, and others evenly in between
_DIGITS = {"dsc": 3, "hd95": 1, "assd": 2}


@dataclass
class Subject:
    """A run with what the page says of it.

    Attributes:
        run: the run.
        scores: of its evaluation.
        cases: the scored cases, in the same order.
        in_mm: whether the spacing is taken for true: volumes are given in mL, distances in mm.
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
        """Whether the evaluation did not know the spacing that the files state: its mm are voxels."""
        voxels, mm = (self.scores.values[MEAN][f"assd_{unit}"] for unit in ("voxels", "mm"))
        return self.in_mm and np.allclose(voxels, mm)

    def distance(self, name: str, measure: str) -> Any:
        """HD95 or ASSD (``hd95``, ``assd``) of a class in the unit, ``[cases]``."""
        return self.scores.values[name][f"{measure}_{'mm' if self.unit == 'mm' else 'voxels'}"]

    @property
    def titles(self) -> list[str]:
        """What the cases are called on the page: by the last part of their path where that tells them apart."""
        last = [name.rpartition("/")[2] for name in self.scores.cases]
        return last if len(set(last)) == len(last) else self.scores.cases

    @property
    def order(self) -> list[int]:
        """The cases by mean DSC, the worst first."""
        return [int(i) for i in np.argsort(self.scores.values[MEAN]["dsc"], kind="stable")]


def case_id(index: int) -> str:
    """Where the pictures of a case are on the page."""
    return f"case-{index + 1}"


def sections(subject: Subject, tick: Callable[[str], None]) -> list[Section]:
    """All sections of the page.

    Args:
        subject: what it is about.
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
    seen: list[Block] = []
    for title, make in (
        ("Class activation maps", _activation),
        ("Labelled and unlabelled features", _densities),
        ("Embedding", _embedding),
    ):
        tick(title)
        seen += [Heading(title), *make(subject)]
    return [*listed, Section("What the network sees", seen)]


def summary(subject: Subject) -> list[Block]:
    """Cards of the main figures, what must be known of them, and where the weights come from."""
    scores, record = subject.scores, subject.run.record
    dice = scores.values[MEAN]["dsc"]
    one_empty = int(sum(scores.values[name]["one_empty"].sum() for name in scores.classes))
    cards = [
        Card("mean DSC", f"{dice.mean():.3f}", f"± {dice.std():.3f} over {_count(len(dice), subject)}"),
        *(
            Card(
                title,
                f"{np.nanmean(values):.{_DIGITS[key]}f}",
                f"{subject.unit}, ± {np.nanstd(values):.{_DIGITS[key]}f}",
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
        blocks.append(
            Note("No spacing is stated for these volumes or it is not to be relied on: distances are in voxels.")
        )
    if subject.took_voxels_for_mm:
        blocks.append(
            Note(
                "The evaluation is older than the files' spacing and took voxels for millimetres: distances in voxels."
            )
        )
    if not record:
        blocks.append(Note("Nothing is recorded of the origin of these weights."))
    known = {
        "method": ("method", "fusion"),
        "data": ("data", "split"),
        "labelled": ("labeled_cases", "labeled_slices"),
        "unlabelled": ("unlabeled_cases", "unlabeled_slices"),
        "iterations": ("iteration", "iterations"),
        "image size, px": ("image_size",),
        "seed": ("seed",),
        "precision": ("precision",),
        "code": ("code",),
        "licence of the data": ("license",),
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
    rows.append([text("weights, SHA-256"), text(subject.run.digest, long=True)])
    blocks.append(Table(["", "trained weights"], rows, sortable=False))
    return blocks


def _count(number_of: int, subject: Subject) -> str:
    return plural(number_of, "volume" if subject.cases[0].spacing else "image")


def plural(count: int, word: str) -> str:
    """A number of things."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


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
            values, digits = every[key][name], _DIGITS[key]
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
            "Scored in 3D on the files' own grid; SD of the population. One empty: only prediction or label has the "
            "class; then DSC is 0 and the distances are the volume's diagonal.",
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


def picked(subject: Subject) -> list[int]:
    """The cases that get pictures: all, or of a large set the worst, the best and others evenly in between."""
    order = subject.order
    if len(order) <= PICTURED:
        return sorted(order)
    ends = PICTURED // 3
    between = np.linspace(ends, len(order) - ends - 1, PICTURED - 2 * ends).round().astype(int)
    return sorted({*order[:ends], *order[-ends:], *(order[i] for i in between)})


def _strip(subject: Subject, index: int, title: str, width: int, most: int = SLICES, id_: str = "") -> Strip:
    case, scores = subject.cases[index], subject.scores
    dice = ", ".join(f"{name} {scores.values[name]['dsc'][index]:.3f}" for name in (MEAN, *scores.classes))
    pictures = case_pictures(case, list(subject.run.colours.values()), most, width)
    return Strip(title, f"DSC: {dice}", pictures, id_)


def example_blocks(subject: Subject) -> list[Block]:
    """The best, the median and the worst case by mean DSC."""
    order = subject.order
    chosen: dict[int, str] = {}  # of few cases one may be the best and the worst
    for title, index in (("Best", order[-1]), ("Worst", order[0]), ("Median", order[(len(order) - 1) // 2])):
        chosen.setdefault(index, title)
    wide = 1 if len(subject.cases[0].label) == 1 else 6
    strips = [
        _strip(subject, index, f"{title}: {subject.titles[index]}", 174 if wide == 6 else 360, wide)
        for index, title in sorted(chosen.items(), key=lambda item: -order.index(item[0]))
    ]
    return [
        Text(
            "By the mean DSC over the classes. The view is cut to the foreground; the patient's left is on the right."
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
    unit = "mL" if subject.in_mm else "voxels"
    for name in scores.classes:
        titles += [f"{name}, {unit}", f"{name} predicted"]
    rows = []
    for index, case in enumerate(cases):
        row = [text(subject.titles[index], case_id(index) if index in shown else "")]
        for name in (MEAN, *scores.classes):
            dice = float(scores.values[name]["dsc"][index])
            row += [number(dice, 3, warn=name == MEAN and index in odd)]
        row += [number(_known(subject.distance(MEAN, key)[index]), _DIGITS[key]) for key in ("hd95", "assd")]
        for c in range(1, len(scores.classes) + 1):
            counts = (float(case.labeled[c]), float(case.predicted[c]))
            row += [number(n * case.millilitres, 1) if subject.in_mm else number(n, 0) for n in counts]
        rows.append(row)
    some = "" if len(shown) == len(cases) else f" Pictures of {len(shown)} cases: the worst, the best and some between."
    caption = "Click a title to sort. Marked: cases that are named under What went wrong." + some
    wide = 86 if len(cases[0].label) > 1 else 150
    strips = [_strip(subject, i, subject.titles[i], wide, id_=case_id(i)) for i in sorted(shown)]
    return [Table(titles, rows, caption), Details(f"Pictures of {plural(len(shown), 'case')}", strips)]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def cardiac_blocks(subject: Subject) -> list[Block]:
    """Volumes of every class and ejection fractions, predicted against labelled."""
    cases, scores = subject.cases, subject.scores
    if cases[0].spacing is None:
        return []
    if not subject.in_mm:
        return [Text("Left out: volumes in mL need a spacing that the files state and that can be relied on.")]
    if len(cases) < 2:
        return [Text("Left out: agreement needs two volumes at least.")]
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
        "Prediction less label; limits of agreement: bias ∓ 1.96 SD (Bland and Altman 1986). A patient's two frames "
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
            number(_known(f.predicted), 1),
            number(_known(f.predicted - f.labeled), 1, sign=True),
        ]
        for f in fractions
    ]
    titles = ["patient", "EDV label, mL", "ESV label, mL", "EDV predicted, mL", "ESV predicted, mL"]
    titles += ["EF label, %", "EF predicted, %", "difference"]
    source = " and by ".join(sorted({f.source for f in fractions}))
    return Table(titles, rows, f"Left ventricle at end diastole (ED) and end systole (ES), told apart by {source}.")


def problem_lists(subject: Subject) -> list[tuple[str, Sequence[problems.Problem], str]]:
    """The kinds of problems: title, what was found, and what was not looked at."""
    cases, scores = subject.cases, subject.scores
    strange: Sequence[problems.Problem] = []
    reason = ""
    try:
        ranges = problems.training_ranges(subject.run)
        if not subject.in_mm:
            ranges = {key: r for key, r in ranges.items() if not problems.MEASURED[key][0]}
        strange = problems.unlike_training(cases, ranges)
    except (ValueError, FileNotFoundError) as error:
        reason = f"Not looked at: {error}"
    return [
        ("Empty on one side", problems.empty_predictions(cases, scores.classes), ""),
        ("Outliers by DSC and by volume", problems.outliers(cases, scores), ""),
        ("Unlike the training images", strange, reason),
    ]


def problem_blocks(subject: Subject, found: Sequence[tuple[str, Sequence[problems.Problem], str]]) -> list[Block]:
    """Tables of what went wrong, with links to the pictures."""
    rules = {
        "Outliers by DSC and by volume": "DSC below the first quartile less 1.5 interquartile ranges of all cases; "
        f"predicted volumes of more than {problems.VOLUME_FACTOR:g} times the label's or less than "
        f"{1 / problems.VOLUME_FACTOR:.2f} times.",
        "Unlike the training images": "Mean and spread of the intensities, scaled from minimum to maximum, and, where "
        "the spacing counts, field of view and pixel in plane: more than 5 % outside the training images' range.",
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


def _activation(subject: Subject) -> list[Block]:
    order = subject.order
    records = subject.run.get("dataset#data")
    colours = list(subject.run.colours.items())
    strips = []
    for title, index in (("Median", order[(len(order) - 1) // 2]), ("Worst", order[0])):
        case = subject.cases[index]
        record = next(r for r in records if r["image"] == case.file)
        try:
            found = features.activation_maps(subject.run, record)
        except (ValueError, FileNotFoundError) as error:
            return [Text(f"Left out: {error}")]
        pictures = [Chart(map_picture(found["image"], None, found["label"], 190, "#ffffff"), "image and label")]
        for number_, ((name, colour), heat) in enumerate(zip(colours, found["maps"], strict=True), start=1):
            pictures.append(Chart(map_picture(found["image"], heat, found["label"] == number_, 190, colour), name))
        strips.append(
            Strip(
                f"{title}: {subject.titles[index]}", "the slice with most foreground, as the network sees it", pictures
            )
        )
    note = (
        f"Grad-CAM at layer {features.CAM_LAYER}, bright where the features speak for the class in the pixels that are "
        "predicted as it; dashed, the label of that class. The paper shows such maps in Figs. 3 and 9."
    )
    return [Text(note), *strips]


def _densities(subject: Subject) -> list[Block]:
    try:
        found = features.densities(subject.run)
    except (ValueError, FileNotFoundError) as error:
        return [Text(f"Left out: {error}")]
    names = [subject.run.class_name(int(number_)) for number_ in found["classes"]]
    svg = charts.density_chart(names, found["grid"], found["labeled"], found["unlabeled"], found["overlap"])
    caption = (
        "Features that the last layer reads, of labelled and of unlabelled training images, on their first principal "
        "component in units of its standard deviation; Gaussian kernel estimates. A pixel counts for the class that "
        "the network predicts. Overlap: the area under both curves, 1 where they are the same (the paper's Fig. 3)."
    )
    return [Charts([Chart(svg, caption)])]


def _embedding(subject: Subject) -> list[Block]:
    try:
        found = features.embedding(subject.run, subject.run.get("dataset#data"))
    except ModuleNotFoundError:
        return [Text("Left out: t-SNE needs scikit-learn (pip install scikit-learn).")]
    except (ValueError, FileNotFoundError) as error:
        return [Text(f"Left out: {error}")]
    colours = ["#8a94a0", *subject.run.colours.values()]
    svg = charts.embedding_chart(found["points"], found["classes"], ["background", *subject.run.colours], colours)
    caption = (
        f"t-SNE of the features that the last layer reads, {len(found['points']):,} pixels of the scored images, "
        "equally many of each class where there are as many; coloured by the label (the paper's Fig. 10)."
    )
    return [Charts([Chart(svg, caption)])]
