"""Cross teaching between CNN and Transformer, CTCT (Luo et al., MIDL 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scripts.losses import PseudoLabel, pseudo_label
from scripts.methods.base import WeakViews
from scripts.methods.consistency import RampedConsistency, joint_pass

__all__ = ["CrossTeaching"]


class CrossTeaching(RampedConsistency):
    """``L_s1 + L_s2 + w(t) (Dice(p_1, arg max p_2) + Dice(p_2, arg max p_1))``: U-Net and Swin-UNet teach each other.

    Both take the same views; the Dice losses cover all unlabelled pixels, and the hard labels carry no gradient.
    ``loss_supervised`` and ``loss_consistency`` are the sums over both networks.

    Trained: 28,982,184 parameters (1 channel, 4 classes), the U-Net and a Swin-UNet of 27,168,420. Deployed: the
    U-Net, 1,813,764. SemSim's Table I cites 29.11 M, the same pair with transposed convolutions in the U-Net
    (29,112,744), as in an earlier SSL4MIS. Deviations from SSL4MIS
    (``train_cross_teaching_between_cnn_transformer_2D.py``): its Swin-UNet starts from ImageNet weights, ours from
    random ones unless ``transformer#pretrained`` names a file; it validates both networks, we validate and deploy the
    U-Net; one optimiser updates both networks, which for SGD is equivalent.

    Args:
        transformer: the second branch, image to logits, e.g. :class:`scripts.networks.SwinUNet`.
        **kwargs: of :class:`RampedConsistency`.
    """

    def __init__(self, *, transformer: nn.Module, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.transformer = transformer

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        supervised, teaching, _ = self.teach(self.weak_views(batch))
        return self.total(supervised, teaching)

    def teach(self, views: WeakViews) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Both sums of losses, and both networks' probabilities ``[B', C, H, W]`` of the unlabelled images."""
        image, label, unlabeled, _ = views
        logits_1, unlabeled_1 = joint_pass(self.network, image, unlabeled)
        logits_2, unlabeled_2 = joint_pass(self.transformer, image, unlabeled)
        supervised = self.supervised_loss(logits_1, label) + self.supervised_loss(logits_2, label)
        teaching = self.dice(unlabeled_1, unlabeled_2.argmax(dim=1)) + self.dice(unlabeled_2, unlabeled_1.argmax(dim=1))
        return supervised, teaching, [unlabeled_1.softmax(dim=1), unlabeled_2.softmax(dim=1)]

    def learners(self) -> tuple[nn.Module, ...]:
        """Both networks."""
        return (self.network, self.transformer)

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """Pseudo-labels of the U-Net (``decoder``) and of the Transformer (``transformer``), which teaches it."""
        transformer = pseudo_label(self.transformer(views.unlabeled).float().softmax(dim=1))
        return {**super().pseudo_labels(views), "transformer": transformer}
