"""The section on the network's activations and features."""

from __future__ import annotations

from collections.abc import Callable

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
from bundle.report.subject import Subject

__all__ = ["network_blocks"]


def network_blocks(subject: Subject, tick: Callable[[str], None]) -> list[Block]:
    """Class activation maps, densities of features, and their embedding; a missing part has its reason.

    Args:
        subject: subject of the page.
        tick: called with the name of each part before it is made.
    """
    seen: list[Block] = []
    for title, make in (
        ("Class activation maps", _activation),
        ("Labelled and unlabelled features", _densities),
        ("Embedding", _embedding),
    ):
        tick(title)
        seen += [Heading(title), *make(subject)]
    return seen


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
                f"{title}: {subject.titles[index]}", "the slice with most foreground, as the network's input", pictures
            )
        )
    note = (
        f"Grad-CAM at layer {features.CAM_LAYER}, bright where the features support the class in the pixels that are "
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
        "Input features of the last layer, of labelled and of unlabelled training images, on their first principal "
        "component in units of its standard deviation; Gaussian kernel estimates. A pixel's class is the one that "
        "the network predicts. Overlap: the area under both curves, 1 if they are equal (the paper's Fig. 3)."
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
        f"t-SNE of the input features of the last layer, {len(found['points']):,} pixels of the evaluated images, "
        "equally many of each class if possible; coloured by the label (the paper's Fig. 10)."
    )
    return [Charts([Chart(svg, caption)])]
