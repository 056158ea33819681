"""The log of a training: a progress bar, printed lines and TensorBoard curves."""

from __future__ import annotations

from ignite.handlers import ProgressBar
from monai.engines import Workflow
from monai.handlers import StatsHandler, TensorBoardStatsHandler

from scripts.engine import SemiSupervisedTrainer

__all__ = ["RunLog"]


class RunLog:
    """Handler that logs a trainer's losses or an evaluator's metrics, in the first process only.

    A trainer gets a progress bar (on a terminal), a printed loss every ``interval`` iterations and TensorBoard curves
    of all losses and the learning rate; an evaluator prints its metrics and adds them to the curves. It wraps MONAI's
    and Ignite's handlers in one, so that no other process opens a TensorBoard file or prints.

    Args:
        output_dir: folder of the TensorBoard events.
        interval: iterations between two printed losses.
    """

    def __init__(self, output_dir: str, interval: int = 50) -> None:
        self.output_dir = output_dir
        self.interval = interval

    def attach(self, engine: Workflow) -> None:
        """Register with a trainer or an evaluator."""
        if engine.state.rank > 0:
            return
        if not isinstance(engine, SemiSupervisedTrainer):
            StatsHandler(iteration_log=False).attach(engine)
            TensorBoardStatsHandler(log_dir=self.output_dir, iteration_log=False).attach(engine)
            return
        progress = ProgressBar(persist=True, disable=None)
        progress.attach(engine, output_transform=lambda output: {k: v for k, v in output[0].items() if "loss" in k})
        StatsHandler(
            tag_name="train_loss",
            output_transform=lambda output: output[0]["loss"],
            iteration_log=lambda _, iteration: iteration % self.interval == 0,
        ).attach(engine)
        TensorBoardStatsHandler(
            log_dir=self.output_dir,
            tag_name="train_loss",
            output_transform=lambda output: {**output[0], "learning_rate": engine.optimizer.param_groups[0]["lr"]},
        ).attach(engine)
