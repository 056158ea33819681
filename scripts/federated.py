"""Federated training with MONAI's client: the length of the schedules, and resuming a site.

``monai.fl.client.MonaiAlgo`` sets the network's weights to the received ones and runs the site's trainer for the epochs
of one round, again and again. Between rounds the trainer keeps its position in the schedules, its optimiser's momentum
and the objective's other modules: the fusion module, teachers, memories. Only the network is exchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from scripts.data import SemiSupervisedLoader, SliceDataset
from scripts.engine import SemiSupervisedTrainer, flag
from scripts.handlers.checkpoints import RunCheckpoint
from scripts.methods import Objective

__all__ = ["needs_labels", "planned_iterations", "rejoin", "site_weight"]

WITHOUT_LABELS = (
    "choose fixmatch, unimatch, a mean teacher's method, or SemSim with method#lambda_cross 0; the sites' methods may "
    "differ"
)
"""What a site without labels can train."""


def planned_iterations(rounds: int | None, epochs: int, epoch_length: int) -> int:
    """Iterations of a site over all rounds: the length of its learning rate's schedule and of its ramps.

    Args:
        rounds: of the federation.
        epochs: of a round.
        epoch_length: iterations of an epoch.

    Raises:
        ValueError: if ``rounds`` is not a positive whole number.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(
            f"rounds: expected the number of federated rounds, found {rounds!r}; the learning rate and the ramps of a "
            "site run over all of them."
        )
    return rounds * epochs * epoch_length


def needs_labels(method: Objective, dataset: SliceDataset) -> bool:
    """Whether an objective needs labelled slices; with some objectives a site may have none.

    Raises:
        ValueError: if the objective needs labelled slices and there are none.
    """
    if method.requires_labeled and len(dataset) and not len(dataset.labeled):
        raise ValueError(
            f"{type(method).__name__} learns from labelled images in every batch, and none of this site's "
            f"{len(dataset)} slices has a label: {WITHOUT_LABELS}."
        )
    return method.requires_labeled


def site_weight(trainer: SemiSupervisedTrainer) -> float:
    """Weight of a site's network in the average after a round.

    A site without labels learns from pseudo-labels only, and those of an untrained network are mostly background. Its
    weight therefore follows the ramp of an objective's term for unlabelled images,
    :meth:`scripts.methods.Objective.ramp_up`, from exp(-5) to 1. A site with labels has weight 1. All sites should make
    the same number of steps.

    Args:
        trainer: trainer of the site.
    """
    labeled = len(cast(SemiSupervisedLoader, trainer.data_loader).dataset.labeled)
    return 1.0 if labeled else float(trainer.objective.ramp_up())


def rejoin(trainer: SemiSupervisedTrainer, handlers: Sequence[Any], resume: bool | str) -> None:
    """Resume a site from its checkpoint, except for the network, which the next round sends.

    Without this the checkpoint's handler would replace the received network by the site's own in every round.

    Args:
        trainer: the site's, before its first round.
        handlers: the trainer's, a :class:`scripts.handlers.checkpoints.RunCheckpoint` among them.
        resume: True or False.

    Raises:
        ValueError: see ``RunCheckpoint``; also if ``resume`` is a path.
    """
    if not isinstance(flag(resume), bool):
        raise ValueError(f"resume: a federated site goes on from its own output_dir, expected True, found {resume!r}.")
    checkpoint = next(handler for handler in handlers if isinstance(handler, RunCheckpoint))
    checkpoint.resume = False
    file = Path(checkpoint.output_dir) / checkpoint.name
    if flag(resume) and file.is_file():
        checkpoint.restore(trainer, file)
        trainer.logger.info(f"Rejoined after epoch {trainer.state.epoch}, from {file}.")
