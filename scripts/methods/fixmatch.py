"""FixMatch for segmentation (Sohn et al., NeurIPS 2020), as the paper's Eqs. 1-3."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scripts.losses import coverage
from scripts.methods.base import Objective

__all__ = ["FixMatch"]


class FixMatch(Objective):
    """``(L_s + L_u) / 2`` with one strong view: the weak view's confident arg max teaches the strong view.

    Trained and deployed: the network, 1,813,764 parameters (1 channel, 4 classes). Deviations from the original and
    from UniMatch's repository (LiheYoung/UniMatch: ``fixmatch.py``; views and threshold are those of
    ``more-scenarios/medical``): CutMix pastes other images of the same unlabelled batch, which already have
    pseudo-labels, while that code loads and predicts further ones; labelled and weak images pass the network
    separately, each with its own batch statistics.
    """

    requires_labeled = False
    capturable = True

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        views = self.weak_views(batch)
        strong = self.strong(views.unlabeled, self.draws)

        with torch.no_grad():
            target = self.pseudo_labels(views)["decoder"]
        supervised = self.supervised(views.image, views.label)
        prediction = self.network(strong.image)
        passed = strong.paste(target.confidence) >= self.threshold
        consistency = self.dice(prediction, strong.paste(target.label), passed)
        return {
            "loss": (supervised + consistency) / 2,
            "loss_supervised": supervised,
            "loss_consistency": consistency,
            **coverage("decoder", target, self.threshold),
        }
