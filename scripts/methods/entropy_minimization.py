"""Entropy minimisation (Grandvalet and Bengio, NIPS 2004; ADVENT: Vu et al., CVPR 2019), as in SSL4MIS."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from scripts.methods.consistency import RampedConsistency, joint_pass

__all__ = ["EntropyMinimization"]


class EntropyMinimization(RampedConsistency):
    """``L_s + w(t) L_ent``: predictions should be confident at every pixel.

    ``L_ent = mean -(sum_c p_c ln p_c) / ln C``, in [0, 1], over the pixels of labelled and unlabelled images alike,
    as in SSL4MIS; it is logged as ``loss_consistency``.

    Trained and deployed: the network's 1,813,764 parameters (1 channel, 4 classes). The loss is SSL4MIS's. ADVENT
    itself uses the entropy of the unlabelled images only, at a fixed weight of .001; its adversarial variant is not
    implemented here.
    """

    capturable = True

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        logits, unlabeled_logits = joint_pass(self.network, image, unlabeled)
        log_p = torch.cat([logits, unlabeled_logits]).log_softmax(dim=1)
        entropy = -(log_p.exp() * log_p).sum(dim=1) / math.log(log_p.shape[1])
        return self.total(self.supervised_loss(logits, label), entropy.mean())
