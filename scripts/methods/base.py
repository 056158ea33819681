"""The interface of an objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from scripts.draws import Draws
from scripts.losses import DiceCE, MaskedDice, PseudoLabel, pseudo_label
from scripts.methods.teacher import MovingAverage
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
        hidden: true labels of the unlabelled images ``[B', H, W]``, if the batch has them; they serve to evaluate
            pseudo-labels and enter no loss.
    """

    image: Tensor
    label: Tensor
    unlabeled: Tensor
    hidden: Tensor | None


class Objective(nn.Module):
    """A training objective: a module whose ``forward(batch)`` returns its named losses.

    It contains the deployed network and everything else that it trains, so one optimiser over ``parameters()``, one
    DistributedDataParallel wrapper and one checkpoint entry serve every objective. A batch holds ``image``
    ``[B, C, H, W]`` in [0, 1], its ``label`` ``[B, 1, H, W]`` and, with unlabelled slices, ``unlabeled``
    ``[B', C, H, W]``. The trainer minimises the entry ``loss`` of the result; all other entries are scalars for the log
    (``loss_*``: its terms, ``coverage_*``: shares of pixels whose pseudo-label is used).

    Args:
        network: the deployed network.
        weak: weak view of labelled and unlabelled images.
        strong: strong view, drawn on the weak one.
        threshold: minimum confidence tau of a pseudo-label.
        teacher_decay: decay of a moving average of the network, which makes the pseudo-labels, without dropout, instead
            of the network. None: the network makes its own pseudo-labels.
        per_image_dice: Dice sums per image instead of per batch, in the default ``loss`` and in the losses of pseudo-
            labels. Per-batch sums cover the images of one process; with per-image sums, L_s of N processes equals that
            of one process with the same global batch, except for batch norm and dropout.
        loss: supervised loss L_s of logits ``[B, C, H, W]`` and labels ``[B, 1, H, W]``; default: Eq. 2, the mean of
            cross-entropy and Dice.

    Attributes:
        requires_unlabeled: whether the objective learns from unlabelled images.
        requires_labeled: whether it needs labelled images in every batch; if False it accepts batches without ``image``
            and ``label``, such as those of a federated site without labels.
        capturable: whether a CUDA graph can replay the step: nothing comes from the host but the batch, :attr:`draws`,
            the learning rate and :attr:`progress`. Each class says so itself; it is not inherited.
        iteration: number of the current iteration, from 0; set by the trainer, also after resuming.
        total_iterations: length of the training; set by the trainer.
        draws: the random numbers of this step's views; set by the trainer. None: each view draws its own.
        progress: :meth:`passed` as a tensor on the device; set by the trainer. None: computed from the iteration.
        supervised_iterations: number of iterations at the start that use labelled images only, for every objective; set
            by the trainer.
    """

    requires_unlabeled = True
    requires_labeled = True
    capturable = False
    iteration = 0
    total_iterations = 1
    supervised_iterations = 0
    draws: Draws | None = None
    progress: Tensor | None = None

    def __init__(
        self,
        network: UNet,
        weak: WeakView | None = None,
        strong: StrongView | None = None,
        threshold: float = 0.95,
        per_image_dice: bool = False,
        teacher_decay: float | None = None,
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
        self.loss = loss or DiceCE(batch=not per_image_dice)
        self.dice = MaskedDice(per_image_dice)
        self.teacher_decay = teacher_decay
        if teacher_decay is not None:
            self.teacher = MovingAverage(network, teacher_decay, dropout=False)

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch: of :meth:`forward`, or of the labelled images in the supervised iterations."""
        if self.phase != "labeled" or "image" not in batch:
            return cast("dict[str, Tensor]", super().__call__(batch))
        image, label = self.labeled_view(batch)
        learners = self.learners()
        loss = torch.stack([self.supervised_loss(network(image), label) for network in learners]).mean()
        # DistributedDataParallel waits for a gradient of every parameter, also of modules not yet in use.
        busy = {id(parameter) for network in learners for parameter in network.parameters()}
        idle = [p.sum() for p in self.parameters() if p.requires_grad and id(p) not in busy]
        return {"loss": loss + 0 * torch.stack(idle).sum() if idle else loss}

    @property
    def phase(self) -> str:
        """What this step does: ``labeled``, the beginning from labelled images alone, or ``all``."""
        return "labeled" if self.iteration < self.supervised_iterations else "all"

    def learners(self) -> tuple[nn.Module, ...]:
        """The networks that learn segmentation, the deployed one first; all train in the supervised iterations."""
        return (self.network,)

    @property
    def target_network(self) -> UNet:
        """The network that makes the decoder's pseudo-labels: the teacher, if there is one."""
        return self.network if self.teacher_decay is None else cast(UNet, self.teacher.module)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch; ``loss`` is the total."""
        raise NotImplementedError

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """All kinds of pseudo-labels of the unlabelled weak views, computed as in :meth:`forward`.

        Args:
            views: of :meth:`weak_views`.

        Returns:
            Pseudo-labels by kind. Every objective has ``decoder``, p^w at the images' size.
        """
        return {"decoder": pseudo_label(self.target_network(views.unlabeled).float().softmax(dim=1))}

    def supervised_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """L_s of ``[B, C, H, W]`` logits against ``[B, H, W]`` labels, computed in float32; 0 where B is 0."""
        if not len(logits):
            return logits.float().sum()
        loss: Tensor = self.loss(logits.float(), label[:, None])
        return loss

    def supervised(self, image: Tensor, label: Tensor) -> Tensor:
        """L_s of the network on labelled views; 0 without any."""
        return self.supervised_loss(self.network(image), label) if len(image) else image.new_zeros(())

    @property
    def former_settings(self) -> dict[str, Any]:
        """Values of options that the class no longer has; a checkpoint with other values is refused."""
        return {}

    def after_step(self) -> None:
        """Called after every optimiser step: updates the teacher, if there is one."""
        if self.teacher_decay is not None:
            self.teacher.update_parameters(self.network)

    def passed(self) -> float:
        """Completed share of the training, in [0, 1]."""
        return min(1.0, self.iteration / self.total_iterations)

    def ramp_up(self) -> float | Tensor:
        """Gaussian ramp ``exp(-5 (1 - t)^2)`` from exp(-5) to 1, t the completed share of the training.

        Source: Laine and Aila, ICLR 2017.
        """
        if self.progress is None:
            return math.exp(-5 * (1 - self.passed()) ** 2)
        return torch.exp(-5 * (1 - self.progress) ** 2)

    def labeled_view(self, batch: Mapping[str, Tensor], draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Weak views of the labelled images ``[B, C, H, W]`` and their labels ``[B, H, W]``; B may be 0.

        Args:
            batch: see the class.
            draws: of the view; default :attr:`draws`.
        """
        if "image" not in batch:
            none = batch["unlabeled"][:0]
            return none, none[:, 0].to(torch.uint8)
        image, label = self.weak.labeled(batch["image"], batch["label"], draws or self.draws)
        return image, label[:, 0]

    def weak_views(self, batch: Mapping[str, Tensor]) -> WeakViews:
        """:meth:`labeled_view`, and the weak views of the unlabelled images; a shared view is one draw for both.

        An entry ``hidden`` of the batch, ``[B', 1, H, W]``, is seen under the unlabelled images' draws.
        """
        unlabeled, device = batch["unlabeled"], batch["unlabeled"].device
        first = second = self.draws or Draws(device)
        if self.weak.shared:
            numbers = first.rand(self.weak.shared_numbers)
            first, second = Draws(device, numbers), Draws(device, numbers)
        image, label = self.labeled_view(batch, first)
        unlabeled, hidden = self.weak(unlabeled, batch.get("hidden"), second)
        return WeakViews(image, label, unlabeled, None if hidden is None else hidden[:, 0])
