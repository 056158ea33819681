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
        image: labeled images ``[B, C, H, W]``.
        label: their labels ``[B, H, W]``.
        unlabeled: unlabeled images ``[B', C, H, W]``.
        hidden: what the unlabeled images would have been labeled ``[B', H, W]``, where the batch says so: pseudo-
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
    ``[B, C, H, W]`` in [0, 1], its ``label`` ``[B, 1, H, W]``, and, where there are unlabeled slices, ``unlabeled``
    ``[B', C, H, W]``. The entry ``loss`` of the result is what is minimised; all other entries are scalars for the
    log (``loss_*`` parts of it, ``coverage_*`` shares of pixels that pass).

    Args:
        network: the network that is deployed.
        weak: weak view of labeled and unlabeled images.
        strong: strong view, drawn on the weak one.
        threshold: confidence tau that a pseudo-label needs.
        teacher_decay: decay of a moving average of the network, which then makes the pseudo-labels, without dropout, in
            the network's place. None: the network teaches itself.
        per_image_dice: Dice sums per image instead of per batch, in the default ``loss`` and in the losses of pseudo-
            labels. Per-batch sums are over the images of one process; per image, L_s of N processes is that of one
            with the same global batch, batch norm and dropout apart.
        loss: supervised loss L_s of logits ``[B, C, H, W]`` and labels ``[B, 1, H, W]``; default: Eq. 2, the mean of
            cross-entropy and Dice.

    Attributes:
        requires_unlabeled: whether the objective learns from unlabeled images.
        requires_labeled: whether it needs labeled images in every batch; those that do not take batches without
            ``image`` and ``label``, such as a federated site without labels has.
        capturable: whether every step of a phase does the same on the device, so that a CUDA graph can replay it: no
            number comes from the host but the batch, :attr:`draws`, the learning rate and :attr:`progress`.
        iteration: number of the current iteration, from 0; the trainer sets it before each, also on resuming.
        total_iterations: length of the training; the trainer sets it at its start.
        draws: the random numbers of the views of this step, which the trainer sets likewise; None: each view takes its
            own from PyTorch's generator.
        progress: :meth:`passed` as a tensor on the device; None: it is computed from the iteration.
        supervised_iterations: so many iterations at the beginning see labeled images alone, whatever the objective;
            the trainer sets it likewise.
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
        """Named losses of one batch: of :meth:`forward` or, at the beginning, of the labeled images alone."""
        if self.phase != "labeled" or "image" not in batch:
            return cast("dict[str, Tensor]", super().__call__(batch))
        image, label = self.labeled_view(batch)
        learners = self.learners()
        loss = torch.stack([self.supervised_loss(network(image), label) for network in learners]).mean()
        # DistributedDataParallel waits for a gradient of every parameter, also of what has nothing to do yet.
        busy = {id(parameter) for network in learners for parameter in network.parameters()}
        idle = [p.sum() for p in self.parameters() if p.requires_grad and id(p) not in busy]
        return {"loss": loss + 0 * torch.stack(idle).sum() if idle else loss}

    @property
    def phase(self) -> str:
        """What this step does: ``labeled``, the beginning from labeled images alone, or ``all``."""
        return "labeled" if self.iteration < self.supervised_iterations else "all"

    def learners(self) -> tuple[nn.Module, ...]:
        """The networks that learn segmentation, the deployed one first: all of them begin with labeled images."""
        return (self.network,)

    @property
    def target_network(self) -> UNet:
        """The network that makes the decoder's pseudo-labels: the teacher, where there is one."""
        return self.network if self.teacher_decay is None else cast(UNet, self.teacher.module)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch; ``loss`` is the total."""
        raise NotImplementedError

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """Every kind of pseudo-label of the unlabeled weak views, as :meth:`forward` makes them.

        Args:
            views: of :meth:`weak_views`.

        Returns:
            By kind. ``decoder``, p^w at the images' size, is there for every objective.
        """
        return {"decoder": pseudo_label(self.target_network(views.unlabeled).float().softmax(dim=1))}

    def supervised_loss(self, logits: Tensor, label: Tensor) -> Tensor:
        """L_s of ``[B, C, H, W]`` logits against ``[B, H, W]`` labels, computed in float32."""
        loss: Tensor = self.loss(logits.float(), label[:, None])
        return loss

    def supervised(self, image: Tensor, label: Tensor) -> Tensor:
        """L_s of the network on labeled views; 0 where there are none."""
        return self.supervised_loss(self.network(image), label) if len(image) else image.new_zeros(())

    @property
    def former_settings(self) -> dict[str, Any]:
        """Options that the class no longer has; an older checkpoint is resumed only if it holds these values."""
        return {}

    def after_step(self) -> None:
        """Called after every optimiser step: updates the teacher, where there is one."""
        if self.teacher_decay is not None:
            self.teacher.update_parameters(self.network)

    def passed(self) -> float:
        """Share of the training that has passed, in [0, 1]."""
        return min(1.0, self.iteration / self.total_iterations)

    def ramp_up(self) -> float | Tensor:
        """Gaussian ramp ``exp(-5 (1 - t)^2)``, t being the share of the training that has passed.

        Weights grow by it from exp(-5) to 1 (Laine and Aila, ICLR 2017).
        """
        if self.progress is None:
            return math.exp(-5 * (1 - self.passed()) ** 2)
        return torch.exp(-5 * (1 - self.progress) ** 2)

    def labeled_view(self, batch: Mapping[str, Tensor], draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Weak views of the labeled images ``[B, C, H, W]`` and their labels ``[B, H, W]``; B is 0 without any.

        Args:
            batch: see the class.
            draws: of the view; default the step's.
        """
        if "image" not in batch:
            none = batch["unlabeled"][:0]
            return none, none[:, 0].to(torch.uint8)
        image, label = self.weak.labeled(batch["image"], batch["label"], draws or self.draws)
        return image, label[:, 0]

    def weak_views(self, batch: Mapping[str, Tensor]) -> WeakViews:
        """:meth:`labeled_view`, and the weak views of the unlabeled images; a shared view is one draw for both.

        An entry ``hidden`` of the batch, ``[B', 1, H, W]``, is seen under the unlabeled images' draws.
        """
        unlabeled, device = batch["unlabeled"], batch["unlabeled"].device
        first = second = self.draws or Draws(device)
        if self.weak.shared:
            numbers = first.rand(self.weak.shared_numbers)
            first, second = Draws(device, numbers), Draws(device, numbers)
        image, label = self.labeled_view(batch, first)
        unlabeled, hidden = self.weak(unlabeled, batch.get("hidden"), second)
        return WeakViews(image, label, unlabeled, None if hidden is None else hidden[:, 0])
