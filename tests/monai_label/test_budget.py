from __future__ import annotations

import itertools
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scripts.engine import SemiSupervisedTrainer
from scripts.methods import Objective
from scripts.monai_label import Studies, TimeBudget, budget_schedule
from tests.monai_label.common import make_datastore


class Slow(Objective):
    """A step of known length."""

    def __init__(self, seconds: float) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(1))
        self.seconds = seconds
        self.totals: list[int] = []

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        self.totals.append(self.total_iterations)
        return {"loss": (self.weight - 1).square().sum()}

    def after_step(self) -> None:
        pass


class Loader:
    iteration = 0

    def __iter__(self) -> Any:
        while True:
            yield {"image": torch.zeros(1, 1, 2, 2)}


def train(
    folder: Path, minutes: float, seconds: float = 0.01, passes: int = 1000, length: int = 7, store: bool = True
) -> tuple[SemiSupervisedTrainer, Slow, list[float]]:
    records = make_datastore(folder, ["a"], ["d"]) if store else []
    method = Slow(seconds)
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0)
    budget = TimeBudget(minutes, Studies(records))
    rates: list[float] = []
    trainer = SemiSupervisedTrainer(
        device="cpu",
        max_epochs=passes,
        train_data_loader=Loader(),  # type: ignore[arg-type]
        method=method,
        optimizer=optimizer,
        lr_scheduler=budget_schedule(optimizer, budget),
        epoch_length=length,
        train_handlers=[budget],
    )
    trainer.add_event_handler("iteration_completed", lambda: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run()
    return trainer, method, rates


def test_a_training_ends_when_its_time_is_up(tmp_path: Path) -> None:
    begin = time.monotonic()
    trainer, method, rates = train(tmp_path, minutes=0.05)
    assert 1.0 < time.monotonic() - begin < 6.0, "three seconds were given"
    assert 3 <= trainer.state.epoch <= 40
    assert trainer.state.iteration > 7
    assert method.totals[-1] == pytest.approx(trainer.state.iteration, rel=0.35)
    assert rates[0] > 0.9
    assert all(late <= early + 0.05 for early, late in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.35


@pytest.mark.parametrize(("minutes", "store"), [(0, True), (0.001, False)])
def test_without_a_budget_or_a_datastore_every_pass_is_made(minutes: float, store: bool, tmp_path: Path) -> None:
    trainer, method, rates = train(tmp_path, minutes, seconds=0, passes=3, store=store)
    assert (trainer.state.iteration, trainer.state.epoch) == (21, 3)
    assert method.totals == [21] * 21
    assert rates == pytest.approx([(1 - i / 21) ** 0.9 for i in range(1, 22)])


def test_time_to_spare_does_not_lengthen_a_training(tmp_path: Path) -> None:
    trainer, _, _ = train(tmp_path, minutes=10, seconds=0, passes=10)
    assert trainer.state.iteration == 70


def test_the_log_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("scripts.monai_label.budget.LOG_INTERVAL", 0.0)
    with caplog.at_level(logging.INFO):
        train(tmp_path, minutes=10, seconds=0, passes=10)
    assert "step 35 of 70, about 1 min left" in caplog.text


@pytest.mark.parametrize("minutes", [-1, float("nan"), float("inf"), "15", True, None])
def test_what_is_no_time_is_refused(minutes: Any) -> None:
    with pytest.raises(ValueError, match="minutes: expected a number of at least 0"):
        TimeBudget(minutes, Studies([]))
