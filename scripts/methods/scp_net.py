"""SCP-Net (Zhang et al., "Self-aware and Cross-sample Prototypical Learning ...", MICCAI 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.methods.consistency import RampedConsistency

__all__ = ["SCPNet"]


class SCPNet(RampedConsistency):
    """``L_s + w(t) (L_self + L_cross) / 2``: the decoder agrees with predictions from the batch's class prototypes.

    Every image, labelled or not, has a prototype of each class: the mean of the decoder's last features, weighted by
    the predicted probabilities. A pixel's cosines with its own image's prototypes give ``p_self`` (their softmax),
    those with all other images' give ``p_cross`` (the shares of the summed exponentials). Then

        L_self = mean (p_self - p)^2,    L_cross = mean w1 w2 (p_cross - p)^2

    over all pixels and classes, with ``w1 = max_c p_self`` and ``w2`` one minus the normalised entropy of the votes of
    the batch's sets of prototypes (including the image's own) at the pixel. Only p, the decoder's prediction, carries a
    gradient, as in the reference code (Medsemiseg/SCP-Net).

    Trained and deployed: the network, 1,813,764 parameters (1 channel, 4 classes); prototypes have none.

    Deviations from the reference code: it weighs L_cross by ``1 - w2``, the votes' entropy, so pixels on which all
    agree have weight 0; we treat this as an error, because the paper's aim is reliability. Its ramp is 1,000 x 150
    iterations long, of which it trains 40,000; here w(t) runs over the whole training, as with the other methods. Its
    learning rate of 0.1 is not used. The equations are those of the code: of the paper we had the abstract only.

    Args:
        **kwargs: of :class:`scripts.methods.consistency.RampedConsistency`; ``consistency_weight`` is .1 at the end.
    """

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        features = self.network.decode_levels(self.network.encode(torch.cat([image, unlabeled])))[-1]
        logits = self.network.head(features)
        probabilities = logits.float().softmax(dim=1)

        itself, others, weight = prototype_predictions(features, probabilities)
        own = F.mse_loss(probabilities, itself)
        cross = (weight[:, None] * (probabilities - others) ** 2).mean()
        supervised = self.supervised_loss(logits[: len(image)], label)
        return {**self.total(supervised, (own + cross) / 2), "loss_self": own, "loss_cross": cross}


@torch.no_grad()
def prototype_predictions(features: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions of a batch from its class prototypes, without gradient.

    Args:
        features: ``[B, D, H, W]`` of at least two images.
        probabilities: ``[B, C, H, W]``, the decoder's.

    Returns:
        ``p_self`` and ``p_cross`` ``[B, C, H, W]``, and L_cross's weights ``w1 w2`` ``[B, H, W]``, all float32.
    """
    batch, classes, height, width = probabilities.shape
    with torch.autocast(features.device.type, enabled=False):
        tokens, share = features.float().flatten(2), probabilities.flatten(2)
        prototypes = share @ tokens.transpose(1, 2) / (share.sum(dim=2, keepdim=True) + 1e-5)
        # [B, B' C, H W]: the cosines of every pixel with every image's prototypes
        cosine = F.normalize(prototypes, dim=2).flatten(0, 1) @ F.normalize(tokens, dim=1)
        cosine = cosine.view(batch, batch, classes, -1)

        itself = cosine.diagonal().movedim(-1, 0).softmax(dim=1)
        votes = torch.zeros_like(share)
        ballot = cosine.max(dim=2).indices  # argmax over a strided dimension is ten times slower on the CPU
        votes.scatter_add_(1, ballot, torch.ones_like(ballot, dtype=votes.dtype))
        votes /= batch
        entropy = -(votes * votes.clamp_min(1e-6).log()).sum(dim=1) / math.log(classes)

        similarity = cosine.exp_()
        others = similarity.sum(dim=1) - similarity.diagonal().movedim(-1, 0)
        others = others / others.sum(dim=1, keepdim=True)
        weight = itself.amax(dim=1) * (1 - entropy)
    size = (height, width)
    return itself.unflatten(2, size), others.unflatten(2, size), weight.unflatten(1, size)
