"""The sections of a page about several runs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from bundle.report import charts
from bundle.report.cases import Case
from bundle.report.curves import curve_charts
from bundle.report.evaluation import MEAN, Scores
from bundle.report.findings import AGREEMENT, AGREEMENT_RULE, measurements, problem_lists
from bundle.report.network import network_blocks
from bundle.report.page import (
    Block,
    Card,
    Cards,
    Chart,
    Charts,
    Details,
    Key,
    Section,
    Strip,
    Table,
    Text,
    number,
    text,
)
from bundle.report.pictures import Window, case_pictures, picture, window
from bundle.report.subject import DIGITS, Subject, shared_cases

__all__ = ["report_sections", "score_sections", "settings_section"]

GRID = 12  # cases in the grid: the worst, the best and others evenly between them
WIDTH = 210  # of a picture in it, pixels


def report_sections(
    subjects: Mapping[str, Subject], folders: Mapping[str, Path], tick: Callable[[str], None]
) -> list[Section]:
    """All sections of a page about several runs.

    Args:
        subjects: the runs' subjects, by name.
        folders: folders of the runs.
        tick: called with the name of each part before it is made.
    """
    first = next(iter(subjects.values()))
    unit = "mm" if all(one.unit == "mm" for one in subjects.values()) else "voxels"
    scores = {name: one.scores for name, one in subjects.items()}
    tick("scores")
    by_file, by_case, curves = score_sections(scores, folders, unit)
    sections = [Section("Summary", _summary(scores, unit)), by_file]
    tick("pictures")
    sections += [*_grid(subjects), by_case]
    if first.cases[0].spacing is not None:
        sections.append(Section("Volumes and ejection fraction", _cardiac(subjects)))
    tick("problems")
    sections += [Section("What went wrong", _problems(subjects)), curves]
    return [*sections, Section("What the network sees", network_blocks(subjects, tick))]


def _distance(scores: Scores, key: str, unit: str, name: str = MEAN) -> float:
    """Mean of a distance, ``hd95`` or ``assd``, over the cases."""
    return float(np.nanmean(scores.values[name][f"{key}_{unit}"]))


def _summary(scores: Mapping[str, Scores], unit: str) -> list[Block]:
    """Cards: the best run by each measure, and the worst case of all."""
    dice = {name: float(one.values[MEAN]["dsc"].mean()) for name, one in scores.items()}
    empty = {name: sum(int(one.values[c]["one_empty"].sum()) for c in one.classes) for name, one in scores.items()}
    worst = min(scores, key=lambda name: scores[name].values[MEAN]["dsc"].min())
    lowest = scores[worst].values[MEAN]["dsc"]
    best = max(dice, key=lambda name: dice[name])
    cards = [Card("highest mean DSC", f"{dice[best]:.3f}", best)]
    for key in ("hd95", "assd"):
        means = {name: _distance(one, key, unit) for name, one in scores.items()}
        best = min(means, key=lambda name: means[name])
        cards.append(Card(f"lowest mean {key.upper()}", f"{means[best]:.{DIGITS[key]}f}", f"{unit}, {best}"))
    case = scores[worst].cases[int(lowest.argmin())].rpartition("/")[2]
    best = min(empty, key=lambda name: empty[name])
    return [
        Cards(
            [
                *cards,
                Card("lowest DSC of a case", f"{lowest.min():.3f}", f"{case}, {worst}"),
                Card("fewest empty on one side", str(empty[best]), best),
            ]
        )
    ]


def score_sections(scores: Mapping[str, Scores], folders: Mapping[str, Path], unit: str | None = None) -> list[Section]:
    """Sections from the files of several runs: scores and distributions, case by case, and training curves.

    Args:
        scores: scores of each run, by name.
        folders: folders of the runs.
        unit: unit of the distances, ``mm`` or ``voxels``; None: mm if all runs have them.
    """
    unit = unit or ("mm" if all(one.unit == "mm" for one in scores.values()) else "voxels")
    classes = list(dict.fromkeys(name for one in scores.values() for name in one.classes))
    rows = []
    for name, one in scores.items():
        values = [one.values[c]["dsc"].mean() if c in one.values else None for c in (MEAN, *classes)]
        empty = sum(int(one.values[c]["one_empty"].sum()) for c in one.classes)
        rows.append(
            [
                text(name),
                *(number(None if v is None else float(v), 3) for v in values),
                *(number(_distance(one, key, unit), DIGITS[key]) for key in ("hd95", "assd")),
                number(empty, 0),
            ]
        )
    titles = ["run", "mean DSC", *(f"DSC {c}" for c in classes), f"HD95, {unit}", f"ASSD, {unit}", "one empty"]
    caption = "Means over the evaluated cases; one empty: masks that only prediction or label has."
    blocks: list[Block] = [Table(titles, rows, caption), _distributions(scores, MEAN, unit)]
    return [
        Section("Scores", [*blocks, Details("Class by class", _by_class(scores, classes, unit))]),
        Section("Case by case", _by_case(scores)),
        Section("Training", curve_charts(folders)),
    ]


def _distributions(scores: Mapping[str, Scores], name: str, unit: str) -> Charts:
    """Box plots of a class, or of the mean, in every run."""
    measures = {"dsc": "DSC", f"hd95_{unit}": "HD95", f"assd_{unit}": "ASSD"}
    drawn = []
    for key, measure in measures.items():
        values = {run: one.values[name][key] for run, one in scores.items() if name in one.values}
        is_dice = key == "dsc"
        title = f"{measure}, {name}" if name != MEAN else f"mean {measure}"
        drawn.append(Chart(charts.boxes(values, title, "DSC" if is_dice else unit, top=1.02 if is_dice else None)))
    return Charts(drawn)


def _by_class(scores: Mapping[str, Scores], classes: Sequence[str], unit: str) -> list[Block]:
    rows = [
        [
            text(c),
            text(run),
            number(float(one.values[c]["dsc"].mean()), 3),
            *(number(_distance(one, key, unit, c), DIGITS[key]) for key in ("hd95", "assd")),
            *(number(float(one.values[c][count].sum()), 0) for count in ("one_empty", "both_empty")),
        ]
        for c in classes
        for run, one in scores.items()
        if c in one.values
    ]
    titles = ["class", "run", "DSC", f"HD95, {unit}", f"ASSD, {unit}", "one empty", "both empty"]
    return [Table(titles, rows), *(_distributions(scores, c, unit) for c in classes)]


def _cardiac(subjects: Mapping[str, Subject]) -> list[Block]:
    """Agreement of volumes and ejection fractions with the labels, run by run."""
    found = [(one, run) for run, subject in subjects.items() for one in measurements(subject)]
    if not found:
        return [Text("Left out: volumes in mL need a reliable spacing in the files, and at least two volumes.")]
    titles = list(dict.fromkeys(one.title for one, _ in found))
    found.sort(key=lambda pair: titles.index(pair[0].title))  # the runs remain in order
    rows = [[text(f"{one.title}, {one.unit}"), text(run), *one.cells] for one, run in found]
    return [Table(["", "run", *AGREEMENT], rows, AGREEMENT_RULE)]


def _problems(subjects: Mapping[str, Subject]) -> list[Block]:
    """Number of cases with each kind of problem, and the cases."""
    counts, rows = [], []
    titles: list[str] = []
    for run, subject in subjects.items():
        found = problem_lists(subject)
        titles = [title for title, _, _ in found]
        cells = [number(None if reason else len({p.case for p in problems}), 0) for _, problems, reason in found]
        counts.append([text(run), *cells])
        reasons: dict[int, list[str]] = {}
        for problem in (problem for _, problems, _ in found for problem in problems):
            reasons.setdefault(problem.case, []).append(problem.what)
        for index, why in reasons.items():
            dice = float(subject.scores.values[MEAN]["dsc"][index])
            rows.append([text(subject.cases[index].name), text(run), number(dice, 3), text("; ".join(why), long=True)])
    rows.sort(key=lambda row: row[0].text)
    table = Table(["case", "run", "mean DSC", "why"], rows)
    caption = f"Cases of each kind, of {len(next(iter(subjects.values())).cases)}; empty: not checked."
    blocks: list[Block] = [Table(["run", *titles], counts, caption)]
    return [*blocks, Details("The cases", [table])] if rows else blocks


def _by_case(scores: Mapping[str, Scores]) -> list[Block]:
    every = list(dict.fromkeys(case for one in scores.values() for case in one.cases))
    found = {name: dict(zip(one.cases, one.values[MEAN]["dsc"].tolist(), strict=True)) for name, one in scores.items()}
    rows = [[text(case), *(number(of_run.get(case), 3) for of_run in found.values())] for case in every]
    return [Table(["case", *(f"mean DSC, {name}" for name in found)], rows, "Click a title to sort.")]


def _labeled(case: Case, k: int, at: Window, colours: Sequence[str]) -> Markup:
    """A slice with the contours of its label only."""
    rows, columns = at
    aspect = case.spacing[0] / case.spacing[1] if case.spacing else 1.0
    return picture(case.image[k, rows, columns], {"label": case.label[k, rows, columns]}, colours, WIDTH, aspect)


def settings_section(groups: Mapping[str, Sequence[tuple[str, str, float]]]) -> list[Section]:
    """Mean DSC over the values of an option, such as a loss's weight or the fusion's stages (Figs. 7 and 8).

    Args:
        groups: method, ablation as ``ID=VALUE`` or another name, and DSC of each run, by the title of the runs' table:
            each group has charts of its own. Options with fewer than two values are omitted.
    """
    drawn = [chart for title, points in groups.items() for chart in _settings(points, title)]
    return [Section("Settings", [Text("Mean over the seeds."), Charts(drawn)])] if drawn else []


def _settings(points: Sequence[tuple[str, str, float]], title: str) -> list[Chart]:
    """A chart for each option of a group of :func:`settings_section`."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for method, overlay, dice in points:
        option, equals, value = overlay.partition("=")
        if equals:
            found.setdefault(option.replace("::", "#"), {}).setdefault(method, {}).setdefault(value, []).append(dice)
    drawn = []
    for option, methods in found.items():
        if max(len(values) for values in methods.values()) > 1:
            lines = {
                method: (list(values), [statistics.mean(values[v]) for v in values])
                for method, values in ((method, _in_order(values)) for method, values in methods.items())
            }
            name = f"{option.rpartition('#')[2]}: {title}"
            drawn.append(Chart(charts.series(lines, name, option, "mean DSC")))
    return drawn


def _in_order(values: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Sort by number if all values are numbers, else by length and text: stages [2], [3], [2,3], [2,3,4]."""

    def key(value: str) -> tuple[float, int, str]:
        try:
            return (float(value), 0, "")
        except ValueError:
            return (float("inf"), len(value), value)

    return dict(sorted(values.items(), key=lambda item: key(item[0])))


def _grid(subjects: Mapping[str, Subject]) -> list[Section]:
    """The same slices of some cases in every run, with label and prediction (Fig. 6)."""
    first = next(iter(subjects.values()))
    order = shared_cases(subjects)
    chosen = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(GRID, len(order))).round().astype(int))]
    strips = []
    for name in chosen:
        same = {run: next(case for case in one.cases if case.name == name) for run, one in subjects.items()}
        at = window(list(same.values()))
        shown_first = next(case for case in first.cases if case.name == name)
        slices = shown_first.largest_slice
        pictures = [Chart(_labeled(shown_first, slices, at, list(first.run.colours.values())), "label")]
        for run, case in same.items():
            dice = subjects[run].scores.values[MEAN]["dsc"][subjects[run].scores.cases.index(name)]
            (shown,) = case_pictures(case, list(first.run.colours.values()), 1, WIDTH, at, only=slices)
            pictures.append(Chart(shown.svg, f"{run}: {dice:.3f}"))
        strips.append(Strip(name, f"slice {slices + 1}; mean DSC of the volume below each", pictures))
    words = f"From the worst to the best case of {first.run.name}, the slice with most foreground."
    return [Section("Pictures", [Text(words), Key(list(first.run.colours.items())), *strips])] if strips else []
