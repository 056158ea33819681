"""The interface of an objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from monai.losses import DiceCELoss
from torch import Tensor, nn

from scripts.losses import MaskedDice, PseudoLabel, pseudo_label
from scripts.networks import UNet
from scripts.utils.options import check_switches
from scripts.views import StrongView, WeakView

__all__ = ["Objective", "WeakViews"]


class WeakViews(NamedTuple):
    """Weak views of a batch.

    Attributes:
        image: labelled images ``[B, C, H, W]``.
        label: their labels ``[B, H, W]``.
        unlabeled: unlabelled images ``[B', C, H, W]``.
        hidden: what the unlabelled images would have been labelled ``[B', H, W]``, where the batch says so: pseudo-
            labels are judged by it, no loss sees it.
    """

    image: Tensor
    label: Tensor
    unlabeled: Tensor
    hidden: Tensor | None


class Objective(nn.Module):
    """A training objective: a module whose ``forward(batch)`` returns its named losses.

    It holds the deployed network and whatever else it trains, so one optimiser over ``parameters()``, one
    DistributedDataParallel wrapper and one checkpoint entry serve every objective. A batch holds ``image``
    ``[B, C, H, W]`` in [0, 1], its ``label`` ``[B, 1, H, W]``, and, where there are unlabelled slices, ``unlabeled``
    ``[B', C, H, W]``. The entry ``loss`` of the result is what is minimised; all other entries are scalars for the
    log (``loss_*`` parts of it, ``coverage_*`` shares of pixels that pass).

    Args:
        network: the network that is deployed.
        weak: weak view of labelled and unlabelled images.
        strong: strong view, drawn on the weak one.
        threshold: confidence tau that a pseudo-label needs.
        per_image_dice: Dice sums per image instead of per batch, in the default ``loss`` and in the losses of pseudo-
            labels. Per-batch sums are over the images of one process; per image, L_s of N processes is that of one
            with the same global batch, batch norm and dropout apart.
        loss: supervised loss L_s of logits ``[B, C, H, W]`` and labels ``[B, 1, H, W]``; default: Eq. 2, the mean of
            cross-entropy and Dice.

    Attributes:
        requires_unlabeled: whether the objective learns from unlabelled images.
        iteration: number of the current iteration, from 0; the trainer sets it before each, also on resuming.
        total_iterations: length of the training; the trainer sets it at its start.
    """

    requires_unlabeled = True
    iteration = 0
    total_iterations = 1

    def __init__(
        self,
        network: UNet,
        weak: WeakView | None = None,
        strong: StrongView | None = None,
        threshold: float = 0.95,
        per_image_dice: bool = False,
        loss: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_switches(per_image_dice=per_image_dice)
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected a confidence in [0, 1], found {threshold}.")
        self.network = network
        self.weak = weak or WeakView()
        self.strong = strong or StrongView()
        self.threshold = threshold
        self.per_image_dice = per_image_dice
        self.loss = loss or DiceCELoss(
            softmax=True,
            to_onehot_y=True,
            squared_pred=True,
            batch=not per_image_dice,
            lambda_dice=0.5,
            lambda_ce=0.5,
        )
        self.dice = MaskedDice(per_image_dice)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch; ``loss`` is the total."""
        raise NotImplementedError

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """Every kind of pseudo-label of the unlabelled weak views, as :meth:`forward` makes them.

        Args:
            views: of :meth:`weak_views`.

        Returns:
            By kind. ``decoder``, p^w at the images' size, is there for every objective.
        """
        return {"decoder": pseudo_label(self.network(views.unlabeled).float().softmax(dim=1))}

    def supervised_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """L_s of ``[B, C, H, W]`` logits against ``[B, H, W]`` labels, computed in float32."""
        loss: Tensor = self.loss(logits.float(), label[:, None])
        return loss

    def after_step(self) -> None:
        """What follows an optimiser step (an EMA update, say). Nothing by default."""

    def ramp_up(self) -> float:
        """Gaussian ramp ``exp(-5 (1 - t)^2)``, t being the share of the training that has passed.

        Weights grow by it from exp(-5) to 1 (Laine and Aila, ICLR 2017).
        """
        t = min(1.0, self.iteration / self.total_iterations)
        return math.exp(-5 * (1 - t) ** 2)

    def labeled_view(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Weak views of the labelled images ``[B, C, H, W]`` and their labels ``[B, H, W]``."""
        image, label = self.weak(batch["image"], batch["label"])
        return image, label[:, 0]

    def weak_views(self, batch: Mapping[str, Tensor]) -> WeakViews:
        """:meth:`labeled_view`, and the weak views of the unlabelled images; a shared view is one draw for both.

        An entry ``hidden`` of the batch, ``[B', 1, H, W]``, is seen under the unlabelled images' draws.
        """
        state = torch.get_rng_state()
        image, label = self.labeled_view(batch)
        if self.weak.shared:
            torch.set_rng_state(state)
        unlabeled, hidden = self.weak(batch["unlabeled"], batch.get("hidden"))
        return WeakViews(image, label, unlabeled, None if hidden is None else hidden[:, 0])
