"""A training within a time limit that a clinician sets."""

from __future__ import annotations

import logging
import time
from statistics import median

import torch
import torch.distributed as dist
from ignite.engine import Events

from scripts.engine import SemiSupervisedTrainer
from scripts.monai_label.datastore import Studies
from scripts.utils.processes import rank_and_count

__all__ = ["BudgetSchedule", "TimeBudget"]

logger = logging.getLogger(__name__)

EPOCHS = 10  # per budget: usable weights and a validation after each tenth of it
TIMED = 5  # iterations that are timed, after a first one
SHARE = 0.8  # iterations' assumed share of the first epoch's time: the rest is batch norm and validation
UNLABELED_COST = 3.0  # cost of an iteration with unlabelled images relative to one without
LOG_INTERVAL = 20.0  # seconds


class TimeBudget:
    """Handler that ends a training when its time is up, and logs its progress.

    An epoch is a tenth of the budget instead of a pass over the unlabelled slices. The first iterations are timed and
    give the number of iterations of an epoch; each epoch updates the number of epochs. The learning rate of a
    :class:`BudgetSchedule` and the objective's ramps follow this plan. A training is never longer than the trainer's
    own ``max_epochs`` passes.

    Args:
        minutes: time for the training, including preprocessing. 0: no budget, ``max_epochs`` passes.
        studies: the studies to learn from; without a datastore there is no budget.

    Raises:
        ValueError: if ``minutes`` is not a number of at least 0.
    """

    def __init__(self, minutes: float, studies: Studies) -> None:
        if isinstance(minutes, bool) or not isinstance(minutes, (int, float)) or not 0 <= minutes < float("inf"):
            raise ValueError(f"minutes: expected a number of at least 0, found {minutes!r}.")
        self.seconds = 60.0 * minutes if studies.root is not None else 0.0
        self.begin = self.logged = studies.begin
        self.total = self.most = 0
        self.timed = 0  # iterations after this one are timed
        self.steps: list[float] = []
        self.first = self.last = 0.0

    def attach(self, engine: SemiSupervisedTrainer) -> None:
        """Register with the trainer, before all handlers that read its number of epochs."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)

    def _start(self, engine: SemiSupervisedTrainer) -> None:
        self.most = int(engine.state.max_epochs or 0) * int(engine.state.epoch_length or 0)
        self._set_total(engine, self.most)

    def _iteration(self, engine: SemiSupervisedTrainer) -> None:
        now = time.monotonic()
        if not self.timed:
            self.timed, self.first = engine.state.iteration, now
        elif self.seconds and len(self.steps) < TIMED:
            self.steps.append(now - self.last)
            if len(self.steps) == TIMED:
                self._plan(engine, median(self.steps))  # a short epoch may have ended in between
        self.last = now
        if now - self.logged > LOG_INTERVAL:
            self.logged = now
            self._tell(engine, now)

    def _plan(self, engine: SemiSupervisedTrainer, step: float) -> None:
        """Set the length and the number of epochs from the seconds of a step, during an epoch."""
        before = (engine.state.epoch - 1) * int(engine.state.epoch_length or 1)
        iterations = min(SHARE * self._iterations(engine, step, self.first), self.most)
        length = engine.state.epoch_length = self._agree(max(1 + TIMED, int(iterations / EPOCHS)))
        epochs = max(1, min(EPOCHS, (self.most - before) // length))
        self.epoch_began = self.first
        self._set(engine, epochs - 1, before + epochs * length)

    def _epoch(self, engine: SemiSupervisedTrainer) -> None:
        if len(self.steps) < TIMED:
            return
        now = time.monotonic()
        length = int(engine.state.epoch_length or 1)
        iterations = min(self._iterations(engine, (now - self.epoch_began) / length, now), self.most)
        more = self._agree(max(0, round((iterations - engine.state.iteration) / length)))
        self.epoch_began = now
        self._set(engine, more, engine.state.iteration + more * length)

    def _iterations(self, engine: SemiSupervisedTrainer, step: float, now: float) -> float:
        """Iterations of the whole training at the current seconds per iteration."""
        done = engine.state.iteration
        left = max(0.0, self.begin + self.seconds - now) / step
        if done >= engine.objective.supervised_iterations or not engine.objective.requires_unlabeled:
            return done + left
        # The first iterations use labelled images only; the others will take longer.
        share = engine.supervised_share
        return (done + left) / (share + (1 - share) * UNLABELED_COST)

    def _set(self, engine: SemiSupervisedTrainer, more: int, total: int) -> None:
        """End the training some epochs after the current one."""
        engine.state.max_epochs = engine.state.epoch + more
        self._set_total(engine, total)

    def _set_total(self, engine: SemiSupervisedTrainer, total: int) -> None:
        self.total = engine.objective.total_iterations = total
        engine.objective.supervised_iterations = round(engine.supervised_share * total)
        if isinstance(engine.lr_scheduler, BudgetSchedule):
            engine.lr_scheduler.total = total

    @staticmethod
    def _agree(number: int) -> int:
        """The first process's number: clocks differ, and no process may wait for a step that others skip."""
        if rank_and_count()[1] == 1:
            return number
        shared = [number]
        dist.broadcast_object_list(shared, 0)
        return shared[0]

    def _tell(self, engine: SemiSupervisedTrainer, now: float) -> None:
        done = engine.state.iteration
        if engine.state.rank > 0 or done == self.timed:
            return
        left = (self.total - done) * (now - self.first) / (done - self.timed)
        if self.seconds:
            left = min(left, max(0.0, self.begin + self.seconds - now))
        logger.info("step %d of %d, about %.0f min left", done, self.total, max(1.0, left / 60))


class BudgetSchedule(torch.optim.lr_scheduler.LambdaLR):
    """Learning rate ``lr (1 - i / total)^power`` at iteration i, with a total set by a :class:`TimeBudget`.

    Args:
        optimizer: the optimizer.
        power: exponent of the decay.

    Attributes:
        total: currently planned iterations of the training; 0: not planned yet.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, power: float = 0.9) -> None:
        self.total = 0
        super().__init__(optimizer, lambda i: max(0.0, 1 - i / self.total) ** power if self.total else 1.0)
