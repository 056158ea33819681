"""Cross-consistency training, CCT (Ouali, Hudelot and Tami, CVPR 2020), as SSL4MIS trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.methods.consistency import RampedConsistency
from scripts.methods.perturbations import feature_dropout, feature_noise
from scripts.networks import UNet
from scripts.networks.dropout import dropout

__all__ = ["CrossConsistencyTraining"]


class CrossConsistencyTraining(RampedConsistency):
    """``mean_k L_s(z_k) + w(t) mean_a MSE(p_0, p_a)``: decoders of perturbed features agree with the main decoder.

    Three auxiliary decoders (a = 1, 2, 3) take every encoder level perturbed: by relative noise of at most .3, by
    dropout, or with its most active positions erased. All four decoders are supervised; the squared error is the mean
    over the unlabelled pixels and classes, with gradients on both sides.

    Trained: 3,713,664 parameters (1 channel, 4 classes), the U-Net and three more decoders. Deployed: the U-Net,
    1,813,764. The loss is that of SSL4MIS (``train_cross_consistency_training_2D.py``, ``unet_cct``), from which the
    compared figures and the 3.71 M parameters come. The authors' own code supervises the main decoder only, detaches
    its prediction as the target, and has more kinds of perturbation.

    Args:
        dropout: rate of the second decoder's dropout of single values.
        **kwargs: of :class:`RampedConsistency`.
    """

    def __init__(self, *, dropout: float = 0.3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout
        self.auxiliary = nn.ModuleList(_decoder_like(self.network) for _ in range(3))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        features = self.network.encode(torch.cat([image, unlabeled]))
        perturbed = (
            [feature_noise(f) for f in features],
            [dropout(f, self.dropout) for f in features],
            [feature_dropout(f) for f in features],
        )
        main = self.network.decode(features).float()
        others = [aux(f).float() for aux, f in zip(self.auxiliary, perturbed, strict=True)]

        n = len(image)
        supervised = torch.stack([self.supervised_loss(z[:n], label) for z in (main, *others)]).mean()
        target = main[n:].softmax(dim=1)
        consistency = torch.stack([F.mse_loss(z[n:].softmax(dim=1), target) for z in others]).mean()
        return self.total(supervised, consistency)


class _Decoder(UNet):
    """A U-Net without its encoder, from features to logits."""

    def forward(self, features: list[Tensor]) -> Tensor:  # type: ignore[override]
        return self.decode(features)


def _decoder_like(network: UNet) -> _Decoder:
    decoder = _Decoder(network.in_channels, network.num_classes, network.channels)
    decoder.encoder = nn.ModuleList()
    return decoder
