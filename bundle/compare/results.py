"""What came out of a comparison: one row per run, tables with mean and standard deviation, validation curves."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.compare.forecast import COVERAGE, Forecast, fit_power_law
from scripts.handlers.checkpoints import RunCheckpoint
from scripts.metrics import MEASURES
from scripts.utils.files import replacing, write_csv, write_text

__all__ = ["CHECKPOINTS", "PARTS", "collect", "write_comparison"]

CHECKPOINTS = {"best": "model.pt", "last": "model_last.pt"}
"""The two networks of a run that are evaluated, and their files."""

PARTS = ("val", "test")

GROUP = ("labeled", "image_size", "iterations")
"""What the runs of one table share."""

_SHOWN = {"dsc": ("DSC", 3), "hd95_voxels": ("HD95", 1), "assd_voxels": ("ASSD", 1)}
_CURVE = "val_mean_dice"


def collect(folder: Path, part: str) -> list[dict[str, Any]]:
    """The rows of all runs in a folder whose two networks are evaluated on a part, in alphabetical order.

    Returns:
        ``run``, its folder's name; ``method``, ``overlay``, ``seed``, ``labeled``, ``image_size``, ``iterations``,
        ``part``; for ``best`` and ``last`` each of the measures, mean over the volumes of the mean over the foreground
        classes (None in mm for photographs), and ``one_empty``, how many masks were empty in only one of prediction
        and label; ``seconds`` of training with its validation (None where no events were logged); ``command`` that
        began the run.
    """
    rows = []
    for about in sorted(folder.glob("*/run.json")):
        run = about.parent
        summaries = {name: run / f"{part}-{name}" / "summary.csv" for name in CHECKPOINTS}
        if not all(path.is_file() for path in summaries.values()):
            continue
        row = {"run": run.name, **json.loads(about.read_text(encoding="utf-8"))}
        command = row.pop("command")
        parser = ConfigParser(ConfigParser.load_config_file(run / "train.json"))
        row |= {name: parser.get_parsed_content(name) for name in ("labeled", "image_size")}
        row |= {"iterations": _state(run)["iteration"], "part": part}
        for name, path in summaries.items():
            with path.open(newline="", encoding="utf-8") as stream:
                mean = next(line for line in csv.DictReader(stream) if line["class"] == "mean")
            row |= {f"{name}_{m}": float(mean[f"{m}_mean"]) if mean[f"{m}_mean"] else None for m in MEASURES}
            row[f"{name}_one_empty"] = int(mean["one_empty"])
        rows.append({**row, "seconds": _seconds(run), "command": command})
    return rows


def write_comparison(folder: Path, rows: Sequence[dict[str, Any]], part: str, command: str) -> str:
    """Write ``PART.csv``, ``PART.md`` and ``curves.png``.

    Args:
        folder: of the comparison.
        rows: of :func:`collect`, at least one.
        part: part of the data set.
        command: the command line that this is the result of.

    Returns:
        The tables with the names of the files.
    """
    write_csv(folder / f"{part}.csv", rows, [key for key in rows[0] if key != "command"])
    text = tables(rows, part, command)
    write_text(folder / f"{part}.md", text)
    draw_curves(folder, rows, folder / "curves.png")
    return f"{text}\n{folder / part}.md, a row per run in {part}.csv, validation curves in curves.png"


def tables(rows: Sequence[dict[str, Any]], part: str, command: str) -> str:
    """Markdown: a table for every number of labels, image size and number of iterations; highest mean DSC first.

    The best network leads and ranks, but on the images that it was chosen on the last one does.
    """
    earlier = [line for line in dict.fromkeys(row["command"] for row in rows) if line != command]
    lines = ["```bash", command, "```", ""]
    if earlier:
        lines += ["Some of the runs were begun by", "", "```bash", *earlier, "```", ""]
    chosen = " The best network was chosen on these very images." if part == "val" else ""
    lines += [
        f"Part `{part}`.{chosen} Mean and, over several seeds, sample standard deviation; distances in voxels; "
        "one empty: masks that were empty in only one of prediction and label, of all seeds.",
    ]
    groups = sorted({tuple(row[key] for key in GROUP) for row in rows}, key=lambda group: group[::-1], reverse=True)
    for group in groups:
        labeled, size, iterations = group
        lines += ["", f"### {labeled} labelled, {size} px, {iterations:,} iterations", "", *_table(rows, group, part)]
    lines += _learning_curves(rows, _networks(part)[0])
    return "\n".join(lines) + "\n"


def _networks(part: str) -> list[str]:
    """Both networks, first the one that ranks."""
    return ["last", "best"] if part == "val" else ["best", "last"]


def _learning_curves(rows: Sequence[dict[str, Any]], network: str) -> list[str]:
    """For each method and ablation with three numbers of labels or more: the power law and what it foresees.

    The last column is the law's own test: the largest number of labels, foreseen from the smaller ones.
    """
    table = []
    variants: dict[tuple[Any, ...], list[tuple[float, float]]] = {}
    for row in rows:
        if row["labeled"] is not None:
            key = (row["method"], row["overlay"], row["image_size"])
            variants.setdefault(key, []).append((row["labeled"], row[f"{network}_dsc"]))
    for (method, overlay, size), points in sorted(variants.items()):
        if (law := fit_power_law(*zip(*points, strict=True))) is None:
            continue
        counts = sorted({count for count, _ in points})
        measured = {count: [dice for other, dice in points if other == count] for count in counts}
        twice = 2 * counts[-1]
        cells = [method, "" if overlay == "default" else f"`{overlay}`", str(size)]
        cells.append(", ".join(f"{count:g}: {statistics.mean(dices):.3f}" for count, dices in measured.items()))
        cells += [f"{law.scale:.3f} n^-{law.exponent:.2f}", f"{twice:g}: {_foreseen(law.forecast(twice))}"]
        earlier = fit_power_law(*zip(*(point for point in points if point[0] < counts[-1]), strict=True))
        held = "" if earlier is None else f"{counts[-1]:g}: {_foreseen(earlier.forecast(counts[-1]))}"
        table.append(f"| {' | '.join([*cells, held])} |")
    if not table:
        return []
    titles = ["method", "ablation", "px", f"labels: {network} DSC", "1 - DSC", "forecast", "largest from the smaller"]
    return [
        "",
        "### Learning curve",
        "",
        f"A power law through all runs, least squares of the logarithms; in brackets where {COVERAGE:.0%} of single "
        "runs are expected.",
        "",
        f"| {' | '.join(titles)} |",
        "|---" * len(titles) + "|",
        *table,
    ]


def _foreseen(forecast: Forecast) -> str:
    return f"{forecast.dice:.3f} ({forecast.low:.3f} to {forecast.high:.3f})"


def _table(rows: Sequence[dict[str, Any]], group: tuple[Any, ...], part: str) -> list[str]:
    networks = _networks(part)
    titles = [f"{name} {title}" for name in networks for title in (*(t for t, _ in _SHOWN.values()), "one empty")]
    lines = [f"| method | ablation | seeds | {' | '.join(titles)} | s |", "|---" * (len(titles) + 4) + "|"]
    variants: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if tuple(row[key] for key in GROUP) == group:
            variants.setdefault((row["method"], row["overlay"]), []).append(row)
    ranked = sorted(variants.items(), key=lambda item: -statistics.mean(row[f"{networks[0]}_dsc"] for row in item[1]))
    for (method, overlay), runs in ranked:
        runs = sorted(runs, key=lambda row: row["seed"])
        cells = [method, "" if overlay == "default" else f"`{overlay}`", ", ".join(str(row["seed"]) for row in runs)]
        for name in networks:
            cells += [mean_and_deviation([row[f"{name}_{m}"] for row in runs], d) for m, (_, d) in _SHOWN.items()]
            cells.append(str(sum(row[f"{name}_one_empty"] for row in runs)))
        times = [row["seconds"] for row in runs if row["seconds"] is not None]
        lines.append(f"| {' | '.join(cells)} | {f'{statistics.mean(times):,.0f}' if times else ''} |")
    return lines


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Mean and, of two values and more, sample standard deviation, as text."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _state(run: Path) -> dict[str, Any]:
    """The trainer's state in a run's checkpoint."""
    return torch.load(run / RunCheckpoint.name, map_location="cpu", mmap=True, weights_only=True)["state"]


def _scalars(run: Path, tag: str) -> list[list[Any]]:
    """The events of a tag, one list per event file: a run that was interrupted has several."""
    found = []
    for path in sorted(run.glob("events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        if tag in events.Tags()["scalars"]:
            found.append(events.Scalars(tag))
    return found


def _seconds(run: Path) -> float | None:
    """Time from a run's first iteration to its last, without pauses between a stop and the next start."""
    found = _scalars(run, "loss")
    return sum(events[-1].wall_time - events[0].wall_time for events in found) if found else None


def validation_curve(run: Path) -> dict[int, float]:
    """Mean Dice on the validation patients by iteration; of an epoch that was trained twice, the later one."""
    events = [event for file in _scalars(run, _CURVE) for event in file]
    events.sort(key=lambda event: (event.step, event.wall_time))
    length = _state(run)["epoch_length"]
    return {event.step * length: event.value for event in events}


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
