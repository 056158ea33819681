"""The sections of a page about several runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup

from bundle.report import charts
from bundle.report.cases import Case
from bundle.report.curves import curve_charts
from bundle.report.evaluation import MEAN, Scores
from bundle.report.page import Block, Chart, Charts, Key, Section, Strip, Table, Text, number, text
from bundle.report.pictures import Window, case_pictures, picture, window
from bundle.report.subject import DIGITS, Subject

__all__ = ["grid_section", "score_sections", "settings_section"]

GRID = 12  # cases in the grid: the worst, the best and others evenly between them
WIDTH = 210  # of a picture in it, pixels


def score_sections(scores: Mapping[str, Scores], folders: Mapping[str, Path]) -> list[Section]:
    """Sections from the files of several runs: scores, distributions, case by case, and training curves.

    Args:
        scores: scores of each run, by name.
        folders: folders of the runs.
    """
    unit = "mm" if all(one.unit == "mm" for one in scores.values()) else "voxels"
    classes = list(dict.fromkeys(name for one in scores.values() for name in one.classes))
    rows = []
    for name, one in scores.items():
        values = [one.values[c]["dsc"].mean() if c in one.values else None for c in (MEAN, *classes)]
        distances = [float(np.nanmean(one.values[MEAN][f"{key}_{unit}"])) for key in ("hd95", "assd")]
        empty = sum(int(one.values[c]["one_empty"].sum()) for c in one.classes)
        rows.append(
            [
                text(name),
                *(number(None if v is None else float(v), 3) for v in values),
                *(number(d, DIGITS[key]) for key, d in zip(("hd95", "assd"), distances, strict=True)),
                number(empty, 0),
            ]
        )
    titles = ["run", "mean DSC", *(f"DSC {c}" for c in classes), f"HD95, {unit}", f"ASSD, {unit}", "one empty"]
    measures = {"dsc": "mean DSC", f"hd95_{unit}": "mean HD95", f"assd_{unit}": "mean ASSD"}
    drawn = [
        Chart(
            charts.boxes(
                {name: one.values[MEAN][key] for name, one in scores.items()},
                title,
                "DSC" if key == "dsc" else unit,
                top=1.02 if key == "dsc" else None,
            )
        )
        for key, title in measures.items()
    ]
    caption = "Means over the evaluated cases; one empty: masks that only prediction or label has."
    return [
        Section("Scores", [Table(titles, rows, caption), Charts(drawn)]),
        Section("Case by case", _by_case(scores)),
        Section("Training", curve_charts(folders)),
    ]


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


def settings_section(points: Sequence[tuple[str, str, float]]) -> list[Section]:
    """Mean DSC over the values of an option, such as a loss's weight or the fusion's stages (Figs. 7 and 8).

    Args:
        points: method, ablation as ``ID=VALUE`` or another name, and DSC of each run. Options with fewer than two
            values are omitted.
    """
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
            drawn.append(Chart(charts.series(lines, option.rpartition("#")[2], option, "mean DSC")))
    return [Section("Settings", [Text("Mean over the seeds."), Charts(drawn)])] if drawn else []


def _in_order(values: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Sort by number if all values are numbers, else by length and text: stages [2], [3], [2,3], [2,3,4]."""

    def key(value: str) -> tuple[float, int, str]:
        try:
            return (float(value), 0, "")
        except ValueError:
            return (float("inf"), len(value), value)

    return dict(sorted(values.items(), key=lambda item: key(item[0])))


def grid_section(subjects: Mapping[str, Subject]) -> list[Section]:
    """The same slices of some cases in every run, with label and prediction (Fig. 6)."""
    first = next(iter(subjects.values()))
    names = set.intersection(*({case.name for case in one.cases} for one in subjects.values()))
    order = [i for i in first.order if first.cases[i].name in names]
    chosen = [order[i] for i in np.unique(np.linspace(0, len(order) - 1, min(GRID, len(order))).round().astype(int))]
    strips = []
    for index in chosen:
        name = first.cases[index].name
        same = {run: next(case for case in one.cases if case.name == name) for run, one in subjects.items()}
        at = window(list(same.values()))
        slices = first.cases[index].largest_slice
        pictures = [Chart(_labeled(first.cases[index], slices, at, list(first.run.colours.values())), "label")]
        for run, case in same.items():
            dice = subjects[run].scores.values[MEAN]["dsc"][subjects[run].scores.cases.index(name)]
            (shown,) = case_pictures(case, list(first.run.colours.values()), 1, WIDTH, at, only=slices)
            pictures.append(Chart(shown.svg, f"{run}: {dice:.3f}"))
        strips.append(Strip(name, f"slice {slices + 1}; mean DSC of the volume below each", pictures))
    words = f"From the worst to the best case of {first.run.name}, the slice with most foreground."
    return [Section("Pictures", [Text(words), Key(list(first.run.colours.items())), *strips])] if strips else []
