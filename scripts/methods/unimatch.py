"""UniMatch (Yang et al., CVPR 2023), whose open code SemSim's recipe follows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.losses import coverage, pseudo_label
from scripts.methods.base import Objective

__all__ = ["UniMatch"]


class UniMatch(Objective):
    """``(L_s + L_u(S1)/4 + L_u(S2)/4 + L_fp/2) / 2``: two strong views and one stream with perturbed features.

    Trained and deployed: the network, 1,813,764 parameters (1 channel, 4 classes). Deviations from the reference code
    (LiheYoung/UniMatch, ``more-scenarios/medical/unimatch.py``): those of :class:`scripts.methods.FixMatch`; the two
    strong views, and the weak view's features with and without dropped channels, pass one after the other, not joined
    with shared batch statistics; CutMix partners are predicted in training mode, like all weak views, not in evaluation
    mode.

    Args:
        feature_dropout: dropout rate of the channels of every encoder level in the feature stream.
        **kwargs: of :class:`scripts.methods.Objective`.
    """

    requires_labeled = False
    capturable = True

    def __init__(self, *, feature_dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.feature_dropout = feature_dropout

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, weak, _ = self.weak_views(batch)
        views = [self.strong(weak, self.draws), self.strong(weak, self.draws)]

        features = self.network.encode(weak)
        with torch.no_grad():
            taught = features if self.teacher_decay is None else self.target_network.encode(weak)
            target = pseudo_label(self.target_network.decode(taught).float().softmax(dim=1))
        perturbed = self.network.decode([F.dropout2d(f, self.feature_dropout) for f in features])

        supervised = self.supervised(image, label)
        predictions = [self.network(view.image) for view in views]
        strong = [
            self.dice(prediction, view.paste(target.label), view.paste(target.confidence) >= self.threshold)
            for prediction, view in zip(predictions, views, strict=True)
        ]
        feature = self.dice(perturbed, target.label, target.confidence >= self.threshold)
        consistency = (strong[0] + strong[1]) / 4 + feature / 2
        return {
            "loss": (supervised + consistency) / 2,
            "loss_supervised": supervised,
            "loss_strong_1": strong[0],
            "loss_strong_2": strong[1],
            "loss_feature": feature,
            **coverage("decoder", target, self.threshold),
        }
