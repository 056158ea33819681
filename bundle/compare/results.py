"""Results of a comparison: one row per run, tables with mean and standard deviation, validation curves."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from monai.bundle import ConfigParser

from bundle.compare.forecast import COVERAGE, Forecast, fit_power_law
from bundle.report.evaluation import read_scores
from bundle.report.events import run_state, seconds, validation_curve
from bundle.report.page import Cell, Code, Heading, Section, Table, Text, number, text, write_page
from bundle.report.several import score_sections, settings_section
from scripts.metrics import MEASURES
from scripts.utils.files import replacing, write_csv, write_text
from scripts.utils.provenance import read_record
from scripts.utils.validation import read_json

__all__ = ["CHECKPOINTS", "PARTS", "collect", "write_comparison"]

CHECKPOINTS = {"best": "model.pt", "last": "model_last.pt"}
"""The two evaluated networks of a run, and their files."""

PARTS = ("val", "test")

GROUP = ("labeled", "image_size", "iterations")
"""Key of a table: the common settings of its runs."""

FORECAST = (
    f"A power law through all runs, least squares of the logarithms; in brackets where {COVERAGE:.0%} of single runs "
    "are expected."
)

_SHOWN = {"dsc": ("DSC", 3), "hd95_voxels": ("HD95", 1), "assd_voxels": ("ASSD", 1)}


def collect(folder: Path, part: str) -> list[dict[str, Any]]:
    """The rows of all runs in a folder with both networks evaluated on a part, sorted by name.

    Returns:
        ``run``, its folder's name; ``method``, ``overlay``, ``seed``, ``labeled``, the number of labelled cases in the
        record of the weights (without one the configuration's value: a share is below 1, None stands for all labels),
        ``image_size``, ``iterations``, ``part``; for ``best`` and ``last`` each of the measures, mean over the volumes
        of the mean over the foreground classes (None in mm for photographs), and ``one_empty``, the number of masks
        that are empty in only one of prediction and label; ``seconds`` of training with its validation (None without
        logged events); the ``command`` that started the run.
    """
    rows = []
    for about in sorted(folder.glob("*/run.json")):
        run = about.parent
        summaries = {name: run / f"{part}-{name}" / "summary.csv" for name in CHECKPOINTS}
        if not all(path.is_file() for path in summaries.values()):
            continue
        row = {"run": run.name, **read_json(about, "run")}
        command = row.pop("command")
        parser = ConfigParser(ConfigParser.load_config_file(run / "train.json"))
        row |= {name: parser.get_parsed_content(name) for name in ("labeled", "image_size")}
        row |= {"labeled": (read_record(run / CHECKPOINTS["last"]) or {}).get("labeled_cases", row["labeled"])}
        row |= {"iterations": run_state(run)["iteration"], "part": part}
        for name, path in summaries.items():
            with path.open(newline="", encoding="utf-8") as stream:
                mean = next(line for line in csv.DictReader(stream) if line["class"] == "mean")
            row |= {f"{name}_{m}": float(mean[f"{m}_mean"]) if mean[f"{m}_mean"] else None for m in MEASURES}
            row[f"{name}_one_empty"] = int(mean["one_empty"])
        rows.append({**row, "seconds": seconds(run), "command": command})
    return rows


def write_comparison(folder: Path, rows: Sequence[dict[str, Any]], part: str, command: str) -> str:
    """Write ``PART.csv``, ``PART.md``, ``PART.html`` and ``curves.png``.

    Args:
        folder: folder of the comparison.
        rows: rows of :func:`collect`, at least one.
        part: part of the data set.
        command: the command line of this result.

    Returns:
        The tables with the names of the files.
    """
    write_csv(folder / f"{part}.csv", rows, [key for key in rows[0] if key != "command"])
    markdown = tables(rows, part, command)
    write_text(folder / f"{part}.md", markdown)
    draw_curves(folder, rows, folder / "curves.png")
    write_comparison_page(folder, rows, part, command)
    return (
        f"{markdown}\n{folder / part}.md, a row per run in {part}.csv, validation curves in curves.png, "
        f"all of it and every case in {part}.html"
    )


def write_comparison_page(folder: Path, rows: Sequence[dict[str, Any]], part: str, command: str) -> None:
    """Write ``PART.html``: the tables, the scores of the network that leads case by case, and the training curves."""
    lead = _networks(part)[0]
    blocks: list[Any] = [Text(_explained(part))]
    groups = _groups(rows)
    for group in groups:
        titles, cells = _table(rows, group, part)
        blocks.append(Table(titles, cells, _titled(group)))
    titles, cells = learning_curves(rows, lead)
    if cells:
        blocks += [Heading("Learning curve"), Table(titles, cells, FORECAST)]
    several = len({row["labeled"] for row in rows}) > 1
    names = {row["run"]: _named(row, several) for row in rows}
    uses = Counter(names.values())  # two shares of few cases may be equally many
    names = {run: name if uses[name] == 1 else run for run, name in names.items()}
    scores = {name: read_scores(folder / run / f"{part}-{lead}") for run, name in names.items()}
    sections = [
        Section("Results", blocks),
        *settings_section(
            {
                _titled(group): [
                    (row["method"], row["overlay"], row[f"{lead}_dsc"]) for row in rows if _group(row) == group
                ]
                for group in groups
            }
        ),
        *score_sections(scores, {name: folder / run for run, name in names.items()}),
        Section("Command", [Code(line) for line in dict.fromkeys([command, *(r["command"] for r in rows)])]),
    ]
    write_page(
        folder / f"{part}.html",
        f"Comparison of {len(rows)} runs, part {part}",
        f"Case by case and in the box plots: the {lead} network of each run",
        sections,
    )


def _named(row: dict[str, Any], labeled: bool) -> str:
    """A run's method, ablation, number of labels if it varies, and seed."""
    parts = [row["method"], "" if row["overlay"] == "default" else row["overlay"]]
    parts += [_count(row["labeled"]) if labeled else "", f"seed {row['seed']}"]
    return ", ".join(filter(None, parts))


def tables(rows: Sequence[dict[str, Any]], part: str, command: str) -> str:
    """Markdown: a table for every number of labels, image size and number of iterations; highest mean DSC first.

    The ranking uses the best network, or the last one on the images that selected the best.
    """
    earlier = [line for line in dict.fromkeys(row["command"] for row in rows) if line != command]
    lines = ["```bash", command, "```", ""]
    if earlier:
        lines += ["Some of the runs were started by", "", "```bash", *earlier, "```", ""]
    lines.append(_explained(part))
    for group in _groups(rows):
        lines += ["", f"### {_titled(group)}", "", *_markdown(*_table(rows, group, part))]
    titles, cells = learning_curves(rows, _networks(part)[0])
    if cells:
        lines += ["", "### Learning curve", "", FORECAST, "", *_markdown(titles, cells)]
    return "\n".join(lines) + "\n"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    """A table whose second column, the ablation, is formatted as code."""
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    for method, overlay, *others in rows:
        words = [method.text, f"`{overlay.text}`" if overlay.text else "", *(cell.text for cell in others)]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def _explained(part: str) -> str:
    chosen = " The best network was chosen on these images." if part == "val" else ""
    return (
        f"Part {part}.{chosen} Mean and, over several seeds, sample standard deviation; distances in voxels; "
        "one empty: masks that were empty in only one of prediction and label, of all seeds."
    )


def _networks(part: str) -> list[str]:
    """The two networks, first the one that ranks: on the images that selected the best one, the last."""
    return ["last", "best"] if part == "val" else ["best", "last"]


def _group(row: dict[str, Any]) -> tuple[Any, ...]:
    """The key of a run's table."""
    return tuple(row[key] for key in GROUP)


def _groups(rows: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """The keys of the tables: the longest runs first, then the largest images, then most labels."""
    groups = {_group(row) for row in rows}
    return sorted(groups, key=lambda group: (*group[:0:-1], group[0] is not None, group[0] or 0), reverse=True)


def _titled(group: tuple[Any, ...]) -> str:
    labeled, size, iterations = group
    return f"{_count(labeled)}, {size} px, {iterations:,} iterations"


def _count(labeled: float | None) -> str:
    """The number of labelled cases in words."""
    return "all labelled" if labeled is None else f"{labeled:g} labelled"


def learning_curves(rows: Sequence[dict[str, Any]], network: str) -> tuple[list[str], list[list[Cell]]]:
    """For each method and ablation with at least three numbers of labels: the power law and its forecast.

    The last column tests the law: the largest number of labels, predicted from the smaller ones.
    """
    table: list[list[Cell]] = []
    variants: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if (row["labeled"] or 0) >= 1:  # neither all labels nor a share, whose number of cases is unknown
            key = (row["method"], row["overlay"], row["image_size"])
            variants.setdefault(key, []).append((row["labeled"], row[f"{network}_dsc"]))
    for (method, overlay, size), points in sorted(variants.items()):
        if (law := fit_power_law(*zip(*points, strict=True))) is None:
            continue
        counts = sorted({count for count, _ in points})
        measured = {count: [dice for other, dice in points if other == count] for count in counts}
        twice = 2 * counts[-1]
        cells = [text(method), text("" if overlay == "default" else overlay), number(size, 0)]
        seen = ", ".join(f"{count:g}: {statistics.mean(dices):.3f}" for count, dices in measured.items())
        fitted = [seen, f"{law.scale:.3f} n^-{law.exponent:.2f}", f"{twice:g}: {_foreseen(law.forecast(twice))}"]
        earlier = fit_power_law(*zip(*(point for point in points if point[0] < counts[-1]), strict=True))
        held = "" if earlier is None else f"{counts[-1]:g}: {_foreseen(earlier.forecast(counts[-1]))}"
        table.append([*cells, *map(text, [*fitted, held])])
    titles = ["method", "ablation", "px", f"labels: {network} DSC", "1 - DSC", "forecast", "largest from the smaller"]
    return titles, table


def _foreseen(forecast: Forecast) -> str:
    return f"{forecast.dice:.3f} ({forecast.low:.3f} to {forecast.high:.3f})"


def _table(rows: Sequence[dict[str, Any]], group: tuple[Any, ...], part: str) -> tuple[list[str], list[list[Cell]]]:
    """Titles and rows of the runs of a group, highest mean DSC first."""
    networks = _networks(part)
    measured = [f"{name} {title}" for name in networks for title in (*(t for t, _ in _SHOWN.values()), "one empty")]
    variants: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if _group(row) == group:
            variants.setdefault((row["method"], row["overlay"]), []).append(row)
    ranked = sorted(variants.items(), key=lambda item: -statistics.mean(row[f"{networks[0]}_dsc"] for row in item[1]))
    lines = []
    for (method, overlay), runs in ranked:
        runs = sorted(runs, key=lambda row: row["seed"])
        cells = [text(method), text("" if overlay == "default" else overlay)]
        cells.append(text(", ".join(str(row["seed"]) for row in runs)))
        for name in networks:
            for measure, (_, digits) in _SHOWN.items():
                values = [row[f"{name}_{measure}"] for row in runs]
                cells.append(Cell(mean_and_deviation(values, digits), statistics.mean(values)))
            cells.append(number(sum(row[f"{name}_one_empty"] for row in runs), 0))
        times = [row["seconds"] for row in runs if row["seconds"] is not None]
        lines.append([*cells, number(statistics.mean(times) if times else None, 0)])
    return ["method", "ablation", "seeds", *measured, "s"], lines


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Mean and, for at least two values, sample standard deviation, as text."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def draw_curves(folder: Path, rows: Iterable[dict[str, Any]], target: Path) -> None:
    """A picture of the validation curves: a line per run, a colour and style per method and ablation."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["method"] if row["overlay"] == "default" else f"{row['method']}, {row['overlay']}"
        new = name not in styles
        number = len(styles)
        style = styles.setdefault(name, {"color": f"C{number % 10}", "linestyle": ("-", "--", ":")[number // 10 % 3]})
        curve = validation_curve(folder / row["run"])
        axes.plot(list(curve), list(curve.values()), **style, linewidth=1, label=name if new else None)
    axes.set(xlabel="iteration", ylabel="mean Dice, validation", ylim=(0, 1))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=110)
