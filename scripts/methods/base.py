"""The interface of an objective."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from scripts.losses import DiceCrossEntropy, MaskedDice
from scripts.networks import UNet
from scripts.views import StrongView, WeakView

__all__ = ["Objective"]


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
        per_image_dice: Dice sums per image instead of per batch. Per-batch sums are over the images of one process:
            with this switch the gradients of N processes equal those of one with the same global batch.
    """

    requires_unlabeled = True

    def __init__(
        self,
        network: UNet,
        weak: WeakView | None = None,
        strong: StrongView | None = None,
        threshold: float = 0.95,
        per_image_dice: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold: expected a confidence in [0, 1], found {threshold}.")
        self.network = network
        self.weak = weak or WeakView()
        self.strong = strong or StrongView()
        self.threshold = threshold
        self.supervised_loss = DiceCrossEntropy(per_image_dice)
        self.dice = MaskedDice(per_image_dice)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch; ``loss`` is the total."""
        raise NotImplementedError

    def after_step(self) -> None:
        """What follows an optimiser step (an EMA update, say). Nothing by default."""

    def labeled_view(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Weak views of the labelled images ``[B, C, H, W]`` and their labels ``[B, H, W]``."""
        image, label = self.weak(batch["image"], batch["label"])
        return image, label[:, 0]
