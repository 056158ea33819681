"""The section on the network's activations and features."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bundle.report import charts, features
from bundle.report.page import (
    Block,
    Chart,
    Charts,
    Heading,
    Strip,
    Text,
)
from bundle.report.pictures import map_picture
from bundle.report.subject import Subject, shared_cases

__all__ = ["network_blocks"]

CONTOUR = "#4df3ff"  # a colour that the activation maps lack


def network_blocks(subjects: Mapping[str, Subject], tick: Callable[[str], None]) -> list[Block]:
    """Class activation maps, densities of features, and their embedding; a missing part has its reason.

    Args:
        subjects: the subject of the page, or several by the names of their runs.
        tick: called with the name of each part before it is made.
    """
    seen: list[Block] = []
    for title, make in (
        ("Class activation maps", _activation),
        ("Labelled and unlabelled features", _densities),
        ("Embedding", _embedding),
    ):
        tick(title)
        seen += [Heading(title), *make(subjects)]
    return seen


def _left_out(name: str, subjects: Mapping[str, Subject], reason: object) -> Text:
    return Text(f"Left out{f' for {name}' if len(subjects) > 1 else ''}: {reason}")


def _activation(subjects: Mapping[str, Subject]) -> list[Block]:
    names = shared_cases(subjects)
    strips: list[Strip] = []
    missing: dict[str, Text] = {}
    for title, chosen in (("Median", names[(len(names) - 1) // 2]), ("Worst", names[0])) if names else ():
        for run, subject in subjects.items():
            index = next(i for i, case in enumerate(subject.cases) if case.name == chosen)
            record = next(r for r in subject.run.get("dataset#data") if r["image"] == subject.cases[index].file)
            try:
                found = features.activation_maps(subject.run, record)
            except (ValueError, FileNotFoundError) as error:
                missing[run] = _left_out(run, subjects, error)
                continue
            pictures = [Chart(map_picture(found["image"], None, found["label"], 190, "#ffffff"), "image and label")]
            for number, (name, heat) in enumerate(zip(subject.run.colours, found["maps"], strict=True), start=1):
                pictures.append(Chart(map_picture(found["image"], heat, found["label"] == number, 190, CONTOUR), name))
            which = f"{run}; " if len(subjects) > 1 else ""
            where = f"{which}the slice with most foreground, as the network's input"
            strips.append(Strip(f"{title}: {subject.titles[index]}", where, pictures))
    note = (
        f"Grad-CAM at layer {features.CAM_LAYER}, bright where the features support the class in the pixels that are "
        "predicted as it; dashed, the label of that class. The paper shows such maps in Figs. 3 and 9."
    )
    shown: list[Block] = [Text(note), *strips] if strips else []
    return [*shown, *missing.values()]


def _densities(subjects: Mapping[str, Subject]) -> list[Block]:
    drawn: list[Chart] = []
    missing: list[Block] = []
    for run, subject in subjects.items():
        try:
            found = features.densities(subject.run)
        except (ValueError, FileNotFoundError) as error:
            missing.append(_left_out(run, subjects, error))
            continue
        names = [subject.run.class_name(int(number)) for number in found["classes"]]
        title = run if len(subjects) > 1 else ""
        grid, labeled, unlabeled, overlap = (found[key] for key in ("grid", "labeled", "unlabeled", "overlap"))
        absent = [name for name in subject.run.colours if name not in names]
        caption = f"Without {', '.join(absent)}, which hardly any pixel is predicted as." if absent else ""
        drawn.append(Chart(charts.density_chart(names, grid, labeled, unlabeled, overlap, title), caption))
    note = (
        "Input features of the last layer, of labelled and of unlabelled training images, on their first principal "
        "component in units of its standard deviation; Gaussian kernel estimates. A pixel's class is the one that "
        "the network predicts. Overlap: the area under both curves, 1 if they are equal (the paper's Fig. 3)."
    )
    shown: list[Block] = [Text(note), Charts(drawn)] if drawn else []
    return [*shown, *missing]


def _embedding(subjects: Mapping[str, Subject]) -> list[Block]:
    drawn: list[Chart] = []
    missing: list[Block] = []
    pixels = 0
    for run, subject in subjects.items():
        try:
            found = features.embedding(subject.run, subject.run.get("dataset#data"))
        except ModuleNotFoundError:
            return [Text("Left out: t-SNE needs scikit-learn (pip install scikit-learn).")]
        except (ValueError, FileNotFoundError) as error:
            missing.append(_left_out(run, subjects, error))
            continue
        names, colours = ["background", *subject.run.colours], ["#8a94a0", *subject.run.colours.values()]
        title = run if len(subjects) > 1 else ""
        drawn.append(Chart(charts.embedding_chart(found["points"], found["classes"], names, colours, title)))
        pixels = max(pixels, len(found["points"]))
    note = (
        f"t-SNE of the input features of the last layer, {pixels:,} pixels of the evaluated images, "
        "equally many of each class if possible; coloured by the label (the paper's Fig. 10)."
    )
    shown: list[Block] = [Text(note), Charts(drawn)] if drawn else []
    return [*shown, *missing]
