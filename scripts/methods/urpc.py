"""Uncertainty rectified pyramid consistency, URPC (Luo et al., MICCAI 2021; Medical Image Analysis 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.methods.consistency import RampedConsistency
from scripts.methods.perturbations import feature_dropout, feature_noise
from scripts.networks.dropout import dropout

__all__ = ["URPC", "rectified_consistency"]


class URPC(RampedConsistency):
    """``mean_s L_s(z_s) + w(t) L_c``: the decoder's scales agree with their mean, with less weight where they diverge.

    Each of the three coarser decoder levels has a head on perturbed features: by dropout (1/8 of the image's size),
    with the most active positions erased (1/4), by relative noise of at most .3 (1/2). Their logits are resized to the
    image's size by nearest interpolation. L_c is :func:`rectified_consistency` of the unlabelled images.

    Trained: 1,821,840 parameters (1 channel, 4 classes), the U-Net and three heads. Deployed: the U-Net, 1,813,764.
    Deviations from SSL4MIS (``train_uncertainty_rectified_pyramid_consistency_2D.py``, ``unet_urpc``): it also has an
    unused head of the bottleneck (9,220 parameters; with it the 1.83 M of SemSim's Table I), which is left out.

    Args:
        dropout: rate of the coarsest head's dropout of single values.
        **kwargs: of :class:`RampedConsistency`.

    Raises:
        ValueError: if the network has other than five levels.
    """

    def __init__(self, *, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dropout = dropout
        if len(self.network.channels) != 5:
            raise ValueError(f"network: expected five levels of channels, found {list(self.network.channels)}.")
        coarse = self.network.channels[3:0:-1]
        self.heads = nn.ModuleList(nn.Conv2d(c, self.network.num_classes, 3, padding=1) for c in coarse)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        pyramid = self.pyramid(torch.cat([image, unlabeled]))
        n = len(image)
        supervised = torch.stack([self.supervised_loss(logits[:n], label) for logits in pyramid]).mean()
        return self.total(supervised, rectified_consistency(torch.stack(pyramid)[:, n:]))

    def pyramid(self, image: Tensor) -> list[Tensor]:
        """Logits ``[B, C, H, W]``, float32, of every scale: the network's own, then from the coarsest to the finest."""
        coarse, middle, fine, full = self.network.decode_levels(self.network.encode(image))
        perturbed = (dropout(coarse, self.dropout), feature_dropout(middle), feature_noise(fine))
        size = image.shape[-2:]
        heads = [F.interpolate(head(f).float(), size=size) for head, f in zip(self.heads, perturbed, strict=True)]
        return [self.network.head(full).float(), *heads]


def rectified_consistency(logits: Tensor) -> Tensor:
    """``mean_s [mean(exp(-D_s) (p - p_s)^2) / mean(exp(-D_s)) + mean(D_s)]``, with gradients through all factors.

    p_s are the class probabilities of scale s, p is their mean over the scales, ``D_s = KL(p || p_s)`` per pixel.

    Args:
        logits: ``[S, B, C, H, W]`` of S scales, float32.
    """
    log_scales = logits.log_softmax(dim=2)
    log_mean = log_scales.logsumexp(dim=0) - math.log(len(logits))  # finite where probabilities underflow
    mean = log_mean.exp()
    divergence = (mean * (log_mean - log_scales)).sum(dim=2)
    certainty = torch.exp(-divergence)
    distance = (mean - log_scales.exp()).square()
    rectified = (distance * certainty[:, :, None]).mean(dim=(1, 2, 3, 4)) / (certainty.mean(dim=(1, 2, 3)) + 1e-8)
    return rectified.mean() + divergence.mean()
