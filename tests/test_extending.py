"""The example of docs/extending.md trains, from a folder outside the package."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bundle.workflows import ROOT, execute
from scripts.methods import Objective
from scripts.networks import UNet

PAGE = ROOT / "docs" / "extending.md"


def block(language: str) -> str:
    """The page's one code block of a language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_example_trains_by_its_overlay(phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise_consistency.py").write_text(block("python"))
    overlay = tmp_path / "noise_consistency.json"
    overlay.write_text(block("json"))
    monkeypatch.syspath_prepend(tmp_path)
    execute(
        "train",
        ["train.json", overlay],
        bundle_root=str(ROOT),
        dataset_dir=str(phantom),
        splits=str(phantom / "splits.json"),
        cache_dir=str(tmp_path / "cache"),
        output_dir=str(tmp_path / "run"),
        device="cpu",
        image_size=64,
        batch_size=2,
        **{"train#trainer#max_epochs": 1, "train#trainer#epoch_length": 2},
    )
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]
    assert (state["objective"], state["iteration"]) == ("NoiseConsistency", 2)
    UNet().load_state_dict(torch.load(tmp_path / "run" / "model.pt", weights_only=True))
    logged: dict[str, list[float]] = {}
    for file in (tmp_path / "run").glob("events*"):
        events = EventAccumulator(str(file)).Reload()
        logged |= {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for supervised, consistency, total, t in zip(
        logged["loss_supervised"], logged["loss_consistency"], logged["loss"], (0, 0.5), strict=True
    ):
        assert consistency > 0
        assert total == pytest.approx(supervised + math.exp(-5 * (1 - t) ** 2) * consistency, rel=1e-5)


def test_what_an_objective_can_rely_on_exists() -> None:
    table = PAGE.read_text().split("## What an objective can rely on")[1].split("\n## ")[0]
    objective = Objective(UNet())
    names = set(re.findall(r"`self\.(\w+)", table)) | set(
        re.findall(r"`(after_step|pseudo_labels|\w+_extra_state)\(?", table)
    )
    assert len(names) > 10
    assert [name for name in sorted(names) if not hasattr(objective, name)] == []
    for path in re.findall(r"`(scripts/[\w/]+\.py)`", table):
        assert (ROOT / path).is_file()
