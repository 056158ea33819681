"""Cross pseudo supervision, CPS (Chen, Yuan, Zeng and Wang, CVPR 2021; code: TorchSemiSeg, SSL4MIS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.losses import PseudoLabel, pseudo_label
from scripts.methods.base import WeakViews
from scripts.methods.consistency import RampedConsistency, joint_pass
from scripts.networks import UNet

__all__ = ["CrossPseudoSupervision"]


class CrossPseudoSupervision(RampedConsistency):
    """``L_s1 + L_s2 + w(t) (CE(z_1, arg max z_2) + CE(z_2, arg max z_1))``: two networks teach each other.

    Both take the same views; the cross-entropies are means over all unlabelled pixels, and the hard labels carry no
    gradient. ``loss_supervised`` and ``loss_consistency`` are the sums over both networks.

    Trained: 3,627,528 parameters (1 channel, 4 classes), two networks. Deployed: the first, 1,813,764. Deviations
    from SSL4MIS: both networks start from PyTorch's default initialisation with different random draws, instead of
    Kaiming's for one and Xavier's for the other; one optimiser updates both, which for SGD is equivalent. The authors'
    own code supervises the labelled images crosswise too, at a constant weight of 1.5.

    Args:
        second: the second network, of the same architecture with other initial weights.
        **kwargs: of :class:`RampedConsistency`.

    Raises:
        ValueError: if both networks are the same object.
    """

    capturable = True

    def __init__(self, *, second: UNet, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if second is self.network:
            raise ValueError("second: expected a network of its own, found the deployed one.")
        self.second = second

    def learners(self) -> tuple[nn.Module, ...]:
        """Both networks."""
        return (self.network, self.second)

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """Pseudo-labels of the deployed network (``decoder``) and of the other (``second``), which teaches it."""
        second = pseudo_label(self.second(views.unlabeled).float().softmax(dim=1))
        return {**super().pseudo_labels(views), "second": second}

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        logits_1, unlabeled_1 = joint_pass(self.network, image, unlabeled)
        logits_2, unlabeled_2 = joint_pass(self.second, image, unlabeled)
        supervised = self.supervised_loss(logits_1, label) + self.supervised_loss(logits_2, label)
        cross_1 = F.cross_entropy(unlabeled_1, unlabeled_2.argmax(dim=1))
        cross_2 = F.cross_entropy(unlabeled_2, unlabeled_1.argmax(dim=1))
        return self.total(supervised, cross_1 + cross_2)
