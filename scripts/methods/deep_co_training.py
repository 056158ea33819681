"""Deep co-training (Qiao, Shen, Zhang, Wang and Yuille, ECCV 2018), in the one-network form of SSL4MIS."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.methods.consistency import RampedConsistency, joint_pass

__all__ = ["DeepCoTraining"]


class DeepCoTraining(RampedConsistency):
    """``L_s + w(t) L_c``: the prediction of a rotated image is the rotated prediction.

    With R a rotation by 0, 90, 180 or 270 degrees, drawn for the batch,
    ``L_c = (mean (sg[p(R x)] - R p(x))^2 + mean (p(R x) - R sg[p(x)])^2) / 2`` over the unlabelled pixels and classes,
    sg the stop-gradient: each prediction learns from the other.

    Trained and deployed: the network's 1,813,764 parameters (1 channel, 4 classes). The loss is that of SSL4MIS, from
    which the compared figures and the 1.81 M parameters come. The original has two networks whose views adversarial
    examples keep different.
    """

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        turns = int(torch.randint(4, ()))  # on the CPU: the device need not synchronise
        logits, upright_logits = joint_pass(self.network, image, unlabeled)
        upright = torch.rot90(upright_logits.softmax(dim=1), turns, (-2, -1))
        turned = self.network(torch.rot90(unlabeled, turns, (-2, -1))).float().softmax(dim=1)
        consistency = (F.mse_loss(upright, turned.detach()) + F.mse_loss(turned, upright.detach())) / 2
        return self.total(self.supervised_loss(logits, label), consistency)
