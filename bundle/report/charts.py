"""Charts as SVG, by matplotlib."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from bundle.report.cardiac import Agreement
from bundle.report.events import Curve

__all__ = ["agreement_chart", "boxes", "density_chart", "embedding_chart", "lines", "series"]

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text remains text: smaller, and searchable
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
POINTS = 240  # points of a curve: more are indistinguishable
PALETTE = ("#1f6feb", "#d1495b", "#2a9d5c", "#e0a030", "#7a4fbf", "#0f9fae", "#8c564b", "#c0479a", "#555f6b", "#9aa31a")


def _svg(figure: Figure, name: str) -> Markup:
    """The figure as an SVG element with unique ids on the page."""
    stream = io.StringIO()
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    text = stream.getvalue()
    used = set(re.findall(r"#([\w-]+)", text))  # the other ids only name the figure's parts
    text = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", text)
    return Markup(text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1))


def _axes(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(1, columns, squeeze=False)[0]


def _plain(text: str) -> str:
    """An external text, escaped so that matplotlib reads no formula in it."""
    return text.replace("$", r"\$")


def boxes(
    groups: Mapping[str, ArrayLike], title: str, unit: str, colours: Sequence[str] = (), top: float | None = None
) -> Markup:
    """Box plots side by side with every value as a point.

    Args:
        groups: values by name.
        title: the measure.
        unit: its unit.
        colours: one for each group.
        top: upper end of the axis; None: by the values.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = _axes(1.0 + 0.58 * max(3, len(groups)), 2.8)
        values = [np.asarray(group, dtype=np.float64) for group in groups.values()]
        values = [group[~np.isnan(group)] for group in values]
        drawn = axes.boxplot(values, widths=0.55, showfliers=False, patch_artist=True, medianprops={"color": "#1d2733"})
        random = np.random.default_rng(0)
        for number, (box, group) in enumerate(zip(drawn["boxes"], values, strict=True)):
            colour = colours[number] if colours else PALETTE[number % len(PALETTE)]
            box.set(facecolor=colour, alpha=0.3, edgecolor=colour)
            axes.plot(
                number + 1 + random.uniform(-0.14, 0.14, len(group)), group, "o", ms=3, alpha=0.75, mew=0, color=colour
            )
        names = [_plain(name) for name in groups]
        tilt = {"rotation": 30, "ha": "right"} if max(map(len, names)) > 8 else {}
        axes.set_xticks(range(1, len(names) + 1), names, **tilt)
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_ylim(0, top)
        axes.grid(axis="x", visible=False)
    return _svg(figure, f"boxes {title}")


def lines(
    curves: Mapping[str, Curve], title: str, ylabel: str, top: float | None = None, named: bool = False
) -> Markup:
    """Curves over the iterations, each with at most 240 means of equally many neighbours.

    Args:
        curves: the curves by name.
        title: title of the chart.
        ylabel: title of the vertical axis.
        top: upper end of the axis; None: by the values.
        named: whether a single curve is named, too.
    """
    with mpl.rc_context(STYLE):
        figure, (axes,) = _axes(5.3, 2.9)
        for number, (name, (steps, values)) in enumerate(curves.items()):
            x, y = _thinned(steps, values)
            style = "-" if number < len(PALETTE) else "--"
            marker = "o" if len(x) < 30 else ""
            colour = PALETTE[number % len(PALETTE)]
            axes.plot(x, y, style, marker=marker, ms=3, lw=1.3, color=colour, label=_plain(name))
        axes.set(title=title, xlabel="iteration", ylabel=ylabel)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(*((0, top) if top else (None, None)))
        if named or len(curves) > 1:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure, f"lines {title}")


def _thinned(steps: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
    size = -(-len(steps) // POINTS)
    starts = np.arange(0, len(steps), max(1, size))
    counts = np.diff([*starts, len(steps)])
    return (np.add.reduceat(array, starts) / counts if len(array) else array for array in (steps, values))  # type: ignore[return-value]


def series(points: Mapping[str, tuple[Sequence[Any], Sequence[float]]], title: str, xlabel: str, ylabel: str) -> Markup:
    """Values over ordered settings, such as a loss's weight."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _axes(4.6, 2.9)
        for number, (name, (settings, values)) in enumerate(points.items()):
            style, colour = "o-" if number < len(PALETTE) else "o--", PALETTE[number % len(PALETTE)]
            axes.plot([str(s) for s in settings], values, style, ms=4, color=colour, label=_plain(name))
        axes.set(title=_plain(title), xlabel=_plain(xlabel), ylabel=ylabel)
        if len(points) > 1:
            axes.legend()
    return _svg(figure, f"series {title}")


def agreement_chart(
    reference: NDArray[np.float64],
    measured: NDArray[np.float64],
    found: Agreement,
    title: str,
    unit: str,
    colour: str,
) -> Markup:
    """Correlation with the line of identity on the left, Bland-Altman's plot on the right."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = _axes(5.0, 2.3, columns=2)
        dots: dict[str, Any] = {"ls": "", "marker": "o", "ms": 4, "alpha": 0.75, "mew": 0, "color": colour}
        left.plot(reference, measured, **dots)
        ends = [min(reference.min(), measured.min()), max(reference.max(), measured.max())]
        left.plot(ends, ends, color="#5b6775", lw=1)
        known = "" if np.isnan(found.correlation) else f": r = {found.correlation:.3f}"  # constant values have none
        left.set(title=f"{_plain(title)}{known}", xlabel=f"label, {unit}", ylabel=f"prediction, {unit}")
        right.plot((reference + measured) / 2, measured - reference, **dots)
        for value, style, name in (
            (found.bias, "-", "bias"),
            (found.limits[0], "--", "-1.96 SD"),
            (found.limits[1], "--", "+1.96 SD"),
        ):
            right.axhline(value, color="#1d2733", ls=style, lw=1)
            place = {"xy": (1, value), "xycoords": ("axes fraction", "data")}
            right.annotate(
                f"{name} {value:+.1f}", **place, xytext=(3, 0), textcoords="offset points", va="center", size=8
            )
        right.set(xlabel=f"mean of both, {unit}", ylabel=f"prediction - label, {unit}")
    return _svg(figure, f"agreement {title}")


def density_chart(
    names: Sequence[str],
    grid: NDArray[Any],
    labeled: NDArray[Any],
    unlabeled: NDArray[Any],
    overlap: NDArray[Any],
    title: str = "",
) -> Markup:
    """Densities of labelled and unlabelled features, a plot per class."""
    with mpl.rc_context(STYLE):
        figure, every = _axes(2.9 * len(names) + 0.4, 2.5, columns=len(names))
        for number, axes in enumerate(every):
            for values, colour, name in ((labeled, PALETTE[0], "labelled"), (unlabeled, PALETTE[1], "unlabelled")):
                axes.plot(grid[number], values[number], color=colour, lw=1.3, label=name)
                axes.fill_between(grid[number], values[number], color=colour, alpha=0.15, lw=0)
            axes.set_title(f"{_plain(names[number])}, overlap {overlap[number]:.2f}")
            axes.set(xlabel="first principal component", ylim=(0, None))
        every[0].set_ylabel("density")
        every[-1].legend()
        if title:
            figure.suptitle(_plain(title), size=10)
    return _svg(figure, f"densities {title}")


def embedding_chart(
    points: NDArray[Any], classes: NDArray[Any], names: Sequence[str], colours: Sequence[str], title: str = ""
) -> Markup:
    """Points of t-SNE by class."""
    with mpl.rc_context(STYLE):
        figure, (axes,) = _axes(4.6, 3.8)
        for number, (name, colour) in enumerate(zip(names, colours, strict=True)):
            x, y = points[classes == number].T
            axes.plot(x, y, "o", ms=3.2, mew=0, alpha=0.7, color=colour, label=_plain(name))
        axes.set(xticks=[], yticks=[], title=_plain(title))
        axes.grid(visible=False)
        _frame(axes)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=1.8)
    return _svg(figure, f"embedding {title}")


def _frame(axes: Axes) -> None:
    for side in axes.spines.values():
        side.set_visible(True)
        side.set_color("#c3ccd6")
