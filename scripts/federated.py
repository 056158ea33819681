"""Federated training with MONAI's client: what a site's training must know beyond its own data.

``monai.fl.client.MonaiAlgo`` sets the network's weights to the received ones and runs the site's trainer for the epochs
of one round, again and again. Between rounds the trainer keeps its place in the schedules, its optimiser's momentum
and whatever the objective holds beside the network: the fusion module, teachers, memories. The network alone travels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts.engine import SemiSupervisedTrainer, flag
from scripts.handlers.checkpoints import RunCheckpoint

__all__ = ["planned_iterations", "rejoin"]


def planned_iterations(rounds: int | None, epochs: int, epoch_length: int) -> int:
    """Iterations of a site over all rounds, along which its learning rate falls and its ramps rise.

    Args:
        rounds: of the federation.
        epochs: of a round.
        epoch_length: iterations of an epoch.

    Raises:
        ValueError: where ``rounds`` is no positive whole number.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(
            f"rounds: expected the number of federated rounds, found {rounds!r}; the learning rate and the ramps of a "
            "site run over all of them."
        )
    return rounds * epochs * epoch_length


def rejoin(trainer: SemiSupervisedTrainer, handlers: Sequence[Any], resume: bool | str) -> None:
    """Go on where a site was stopped: all from its checkpoint but the network, which the next round brings.

    Without it the checkpoint's handler would load the site's own network over the received one, at every round.

    Args:
        trainer: the site's, before its first round.
        handlers: the trainer's, a :class:`scripts.handlers.checkpoints.RunCheckpoint` among them.
        resume: True or False.

    Raises:
        ValueError: as ``RunCheckpoint`` does, or for a ``resume`` that is a path.
    """
    if not isinstance(flag(resume), bool):
        raise ValueError(f"resume: a federated site goes on from its own output_dir, expected True, found {resume!r}.")
    checkpoint = next(handler for handler in handlers if isinstance(handler, RunCheckpoint))
    checkpoint.resume = False
    file = Path(checkpoint.output_dir) / checkpoint.name
    if flag(resume) and file.is_file():
        checkpoint.restore(trainer, file)
        trainer.logger.info(f"Rejoined after epoch {trainer.state.epoch}, from {file}.")
