from __future__ import annotations

import itertools
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import nn

from scripts.engine import SemiSupervisedTrainer
from scripts.methods import Objective
from scripts.monai_label import BudgetSchedule, Studies, TimeBudget
from tests.monai_label.common import make_datastore


class Clock:
    """A clock that only work advances."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("budget", "datastore"):
        monkeypatch.setattr(f"scripts.monai_label.{module}.time", clock)
    return clock


class Slow(Objective):
    """Each step takes some seconds of the clock, more after a given iteration."""

    def __init__(self, clock: Clock, seconds: float, slower_from: int) -> None:
        nn.Module.__init__(self)
        self.network = nn.Identity()
        self.weight = nn.Parameter(torch.zeros(1))
        self.clock, self.seconds, self.slower_from = clock, seconds, slower_from
        self.totals: list[int] = []

    teacher_decay = None

    def __call__(self, batch: Any) -> dict[str, torch.Tensor]:
        self.totals.append(self.total_iterations)
        alone = self.iteration < self.supervised_iterations
        self.clock.now += self.seconds * (1 if alone or len(self.totals) < self.slower_from else 3)
        return {"loss": (self.weight - 1).square().sum()}


class Loader:
    iteration = 0

    def __iter__(self) -> Any:
        while True:
            yield {"image": torch.zeros(1, 1, 2, 2)}


def train(
    folder: Path,
    clock: Clock,
    minutes: float,
    passes: int,
    length: int,
    seconds: float = 2.0,
    slower_from: int = 10**6,
    store: bool = True,
    supervised_share: float = 0.0,
) -> tuple[SemiSupervisedTrainer, Slow, list[float]]:
    """Train with ten seconds of validation after each epoch; the rates after each iteration."""
    records = make_datastore(folder, ["a"], ["d"]) if store else []
    method = Slow(clock, seconds, slower_from)
    optimizer = torch.optim.SGD(method.parameters(), lr=1.0)
    budget = TimeBudget(minutes, Studies(records))
    rates: list[float] = []
    trainer = SemiSupervisedTrainer(
        device="cpu",
        max_epochs=passes,
        train_data_loader=Loader(),  # type: ignore[arg-type]
        method=method,
        optimizer=optimizer,
        lr_scheduler=BudgetSchedule(optimizer),
        epoch_length=length,
        supervised_share=supervised_share,
        train_handlers=[Validation(clock), budget],
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: rates.append(optimizer.param_groups[0]["lr"]))
    trainer.run()
    return trainer, method, rates


class Validation:
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def attach(self, engine: SemiSupervisedTrainer) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.validate)

    def validate(self) -> None:
        self.clock.now += 10


@pytest.mark.parametrize("length", [3, 250])
@pytest.mark.parametrize("slower_from", [10**6, 150])
def test_a_training_ends_when_its_time_is_up(length: int, slower_from: int, clock: Clock, tmp_path: Path) -> None:
    begin = clock.now
    trainer, method, rates = train(tmp_path, clock, 15, passes=1000, length=length, slower_from=slower_from)
    spent = clock.now - begin
    assert spent == pytest.approx(900, abs=125), "half an epoch, which is three times as long where steps are"
    assert 4 <= trainer.state.epoch <= 13
    assert method.totals[-1] == pytest.approx(trainer.state.iteration, abs=40), "within an epoch"
    assert rates[0] > 0.99
    assert all(late <= early + 0.06 for early, late in itertools.pairwise(rates))
    assert rates[-1] < 0.25


def test_the_plan_includes_the_cost_of_unlabelled_iterations(clock: Clock, tmp_path: Path) -> None:
    begin = clock.now
    trainer, method, _ = train(tmp_path, clock, 15, 1000, 250, slower_from=0, supervised_share=0.6)
    assert clock.now - begin == pytest.approx(900, abs=100)
    assert method.totals[40] == pytest.approx(trainer.state.iteration, rel=0.25), "nearly as planned from the start"
    assert method.supervised_iterations == pytest.approx(0.6 * trainer.state.iteration, abs=1)


@pytest.mark.parametrize(("minutes", "store"), [(0, True), (0.1, False)])
def test_without_a_budget_or_a_datastore_every_pass_is_made(
    minutes: float, store: bool, clock: Clock, tmp_path: Path
) -> None:
    trainer, method, rates = train(tmp_path, clock, minutes, passes=3, length=7, store=store)
    assert (trainer.state.iteration, trainer.state.epoch) == (21, 3)
    assert method.totals == [21] * 21
    assert rates == pytest.approx([(1 - i / 21) ** 0.9 for i in range(1, 22)])


def test_time_to_spare_does_not_lengthen_a_training(clock: Clock, tmp_path: Path) -> None:
    trainer, _, _ = train(tmp_path, clock, 1000, passes=10, length=7)
    assert trainer.state.iteration == 70


def test_the_log_says_how_far_it_is(clock: Clock, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        train(tmp_path, clock, 0, passes=10, length=60, seconds=6)
    found = [re.fullmatch(r"step (\d+) of 600, about (\d+) min left", record.message) for record in caplog.records]
    told = [(int(match[1]), int(match[2])) for match in found if match]
    assert 100 < len(told) < 200, "one in 20 seconds or so"
    assert all(left == pytest.approx((600 - step) * (6 + 10 / 60) / 60, abs=2.1) for step, left in told[3:])


@pytest.mark.parametrize("minutes", [-1, float("nan"), float("inf"), "15", True, None])
def test_invalid_times_are_refused(minutes: Any) -> None:
    with pytest.raises(ValueError, match="minutes: expected a number of at least 0"):
        TimeBudget(minutes, Studies([]))
