"""Base classes of objectives ``L_s + w(t) L_c``: the weight, a joint forward pass, a mean teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scripts.losses import PseudoLabel, pseudo_label
from scripts.methods.base import Objective, WeakViews
from scripts.methods.teacher import MovingAverage

__all__ = ["RampedConsistency", "TaughtConsistency", "joint_pass"]


def joint_pass(network: nn.Module, labeled: Tensor, unlabeled: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, float32, of labelled and unlabelled images ``[B, C, H, W]`` in one pass with shared batch statistics.

    SSL4MIS trains all of these methods in this way.
    """
    logits = network(torch.cat([labeled, unlabeled])).float()
    return logits[: len(labeled)], logits[len(labeled) :]


class RampedConsistency(Objective):
    """``L_s + w(t) L_c`` with ``w(t) = consistency_weight exp(-5 (1 - t)^2)``, t from 0 to 1 over the whole training.

    Args:
        consistency_weight: weight of L_c at the end of the training.
        **kwargs: of :class:`scripts.methods.Objective`. Threshold and strong view are not used.

    Raises:
        ValueError: for a negative weight.
    """

    def __init__(self, *, consistency_weight: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if consistency_weight < 0:
            raise ValueError(f"consistency_weight: expected a weight of at least 0, found {consistency_weight}.")
        self.consistency_weight = consistency_weight

    def total(self, supervised: Tensor, consistency: Tensor) -> dict[str, Tensor]:
        """The named losses: both terms unweighted, and their weighted sum."""
        return {
            "loss": supervised + self.consistency_weight * self.ramp_up() * consistency,
            "loss_supervised": supervised,
            "loss_consistency": consistency,
        }


class TaughtConsistency(RampedConsistency):
    """L_c with targets of a mean teacher, see :class:`scripts.methods.teacher.MovingAverage`.

    The teacher is in train mode like its student, as in the reference code: it has dropout and normalises by its own
    batch. The average starts with the weights after the first step and then uses the full decay; SSL4MIS raises the
    decay as ``min(1 - 1 / (i + 1), decay)`` at step i = 0, 1, ..., which at .99 affects the first 100 steps.

    Args:
        decay: decay of the teacher's average, in [0, 1).
        **kwargs: of :class:`RampedConsistency`.
    """

    requires_labeled = False

    def __init__(self, *, decay: float = 0.99, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.teacher = MovingAverage(self.network, decay)

    @torch.no_grad()
    def teach(self, image: Tensor) -> Tensor:
        """The teacher's class probabilities ``[B, C, H, W]`` of images, float32, cut from the graph."""
        probabilities: Tensor = self.teacher(image).float().softmax(dim=1)
        return probabilities

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """Pseudo-labels of the student (``decoder``) and of the teacher (``teacher``), which gives the targets."""
        return {**super().pseudo_labels(views), "teacher": pseudo_label(self.teach(views.unlabeled))}

    def after_step(self) -> None:
        """Update the teacher's average."""
        self.teacher.update_parameters(self.network)
