"""A run's TensorBoard events: losses, coverage, validation, learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scripts.handlers.checkpoints import RunCheckpoint

__all__ = ["VALIDATION", "Curve", "curves", "run_state", "seconds", "validation_curve"]

VALIDATION = "val_mean_dice"
"""Tag of the validation's mean Dice, whose steps are epochs; other tags have iterations."""

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]
"""Iterations and their values."""


def run_state(run: Path) -> dict[str, Any]:
    """The trainer's state in a run's checkpoint."""
    state: dict[str, Any] = torch.load(run / RunCheckpoint.name, map_location="cpu", mmap=True, weights_only=True)[
        "state"
    ]
    return state


def curves(run: Path) -> dict[str, Curve]:
    """All logged values of a run, by tag; for a repeated step the later one.

    Args:
        run: the run's folder. Steps of the validation become iterations by the checkpoint's epoch length; without a
            checkpoint they remain epochs.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for events in _event_files(run):
        for tag in events.Tags()["scalars"]:
            steps = found.setdefault(tag, {})
            for event in events.Scalars(tag):
                if event.step not in steps or event.wall_time >= steps[event.step][0]:
                    steps[event.step] = (event.wall_time, event.value)
    length = run_state(run)["epoch_length"] if (run / RunCheckpoint.name).is_file() else 1
    return {
        tag: (
            np.array(sorted(steps), dtype=np.int64) * (length if tag == VALIDATION else 1),
            np.array([steps[step][1] for step in sorted(steps)]),
        )
        for tag, steps in found.items()
    }


def validation_curve(run: Path) -> dict[int, float]:
    """Mean Dice on the validation cases by iteration."""
    steps, values = curves(run).get(VALIDATION, (np.empty(0, int), np.empty(0)))
    return dict(zip(steps.tolist(), values.tolist(), strict=True))


def seconds(run: Path) -> float | None:
    """Time from a run's first iteration to its last, without interruptions."""
    files = [events.Scalars("loss") for events in _event_files(run) if "loss" in events.Tags()["scalars"]]
    return sum(scalars[-1].wall_time - scalars[0].wall_time for scalars in files) if files else None


def _event_files(run: Path) -> list[EventAccumulator]:
    """The event files of a run, in order; an interrupted run has several."""
    paths = sorted(run.glob("events.out.tfevents.*"))
    return [EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload() for path in paths]
