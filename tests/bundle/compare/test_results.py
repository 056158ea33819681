"""Tables and page of a comparison, from files made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from bundle.compare.results import collect, write_comparison
from bundle.report.page import anchor
from scripts.metrics import COUNTS, MEASURES
from scripts.utils.provenance import write_record


def finished(
    folder: Path, name: str, labeled: float | None, counted: int | None, dice: float, overlay: str = "default"
) -> None:
    """A finished run whose configuration has ``labeled`` and whose record has ``counted`` cases; None: no record."""
    run = folder / name
    run.mkdir(parents=True)
    about = {"method": "semsim", "overlay": overlay, "seed": 0, "command": "python -m bundle compare"}
    (run / "run.json").write_text(json.dumps(about))
    (run / "train.json").write_text(json.dumps({"labeled": labeled, "image_size": 64}))
    torch.save({"state": {"iteration": 10, "epoch_length": 5}}, run / "checkpoint.pt")
    torch.save({"name": torch.tensor(dice)}, run / "model_last.pt")
    if counted is not None:
        write_record(run / "model_last.pt", {"labeled_cases": counted})
    values = [dice if measure == "dsc" else 3.0 for measure in MEASURES]
    for network in ("best", "last"):
        scores = run / f"val-{network}"
        scores.mkdir()
        rows = [",".join(["case", "class", *MEASURES, *COUNTS])]
        rows += [",".join(map(str, ["a", of, *values, *(0 for _ in COUNTS)])) for of in ("LV", "mean")]
        (scores / "per_volume.csv").write_text("\n".join(rows))
        summary = [
            ",".join(["class", *(f"{m}_mean" for m in MEASURES), "one_empty"]),
            ",".join(map(str, ["mean", *values, 0])),
        ]
        (scores / "summary.csv").write_text("\n".join(summary))


def shown(folder: Path) -> tuple[list[dict[str, Any]], str, str]:
    """The rows, the Markdown and the page."""
    rows = collect(folder, "val")
    write_comparison(folder, rows, "val", "python -m bundle compare")
    return rows, (folder / "val.md").read_text(), (folder / "val.html").read_text()


def test_labelled_cases_are_those_that_the_runs_had(tmp_path: Path) -> None:
    """Counts, shares and all labels in one folder; the oldest run has no record."""
    finished(tmp_path, "one", 1, 1, 0.6)
    finished(tmp_path, "share", 0.25, 2, 0.7)
    finished(tmp_path, "other share", 0.26, 2, 0.72)
    finished(tmp_path, "all", None, 8, 0.8)
    finished(tmp_path, "old", None, None, 0.81)
    finished(tmp_path, "old share", 0.5, None, 0.82)
    rows, markdown, page = shown(tmp_path)
    assert {row["run"]: row["labeled"] for row in rows} == {
        "one": 1, "share": 2, "other share": 2, "all": 8, "old": None, "old share": 0.5
    }  # fmt: skip
    titles = [line.removeprefix("### ").partition(",")[0] for line in markdown.splitlines() if line.startswith("### ")]
    assert titles == [
        *("8 labelled", "2 labelled", "1 labelled", "0.5 labelled", "all labelled"),
        "Learning curve",
    ]
    (line,) = re.findall(r"\| 1: .*", markdown)
    assert line.startswith("| 1: 0.600, 2: 0.710, 8: 0.800 | ")
    assert "| 16: 0." in line, "twice as many cases"
    for name in ("semsim, 1 labelled, seed 0", "semsim, all labelled, seed 0", "share", "other share"):
        assert f">{name}</td>" in page, "every run is in the table of scores"


def test_settings_of_different_tables_have_charts_of_their_own(tmp_path: Path) -> None:
    dices = {(1, 0): 0.5, (1, 1): 0.6, (7, 0): 0.8, (7, 1): 0.9}
    for (count, value), dice in dices.items():
        finished(tmp_path, f"{count}-{value}", count, count, dice, f"method::lambda_intra={value}")
    _, _, page = shown(tmp_path)
    settings = page[page.index(f'<section id="{anchor("Settings")}">') :].partition("</section>")[0]
    assert re.findall(r">(lambda_intra: [^<]*)<", settings) == [
        f"lambda_intra: {count} labelled, 64 px, 10 iterations" for count in (7, 1)
    ]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
