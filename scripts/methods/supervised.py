"""Training on the labelled images only."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from scripts.methods.base import Objective

__all__ = ["Supervised"]


class Supervised(Objective):
    """L_s (Eq. 2): the paper's "only sup". Unlabelled images are not used.

    Trained and deployed: the network, 1,813,764 parameters (1 channel, 4 classes).
    """

    requires_unlabeled = False
    capturable = True

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label = self.labeled_view(batch)
        return {"loss": self.supervised_loss(self.network(image), label)}
