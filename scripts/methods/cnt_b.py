"""CnT-B (Huang et al., ACM MM 2023): the more certain of a CNN and a Transformer teaches the other, at two levels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.methods.cross_teaching import CrossTeaching
from scripts.networks import SwinUNet
from scripts.similarity import class_means, class_shares

__all__ = ["CnTB", "Geometry", "class_geometry", "pixel_uncertainty"]


class Geometry(NamedTuple):
    """Geometry of the classes in a branch's features, for each image.

    Attributes:
        cosines: ``[B, C, C]``, cosines between the classes' mean features.
        spread: ``[B, C]``, one minus the mean cosine between a class's features and their mean, in [0, 2].
    """

    cosines: Tensor
    spread: Tensor


class CnTB(CrossTeaching):
    """``L_s1 + L_s2 + w(t) (L_pixel + L_feature)``: cross teaching in which the less certain branch learns.

    There is no public code: this is a re-implementation from the abstract (doi 10.1145/3581783.3611821) and the number
    of parameters in SemSim's Table I.

    - Known: a CNN and a Transformer; uncertainty is estimated at two levels; at the feature level the "statistical and
      geometrical properties of features" are aligned, at the pixel level the influence of unreliable pseudo-labels is
      reduced.
    - Inferred: the branches are the U-Net and the Swin-UNet of cross teaching, which have exactly the reported 29.11 M
      parameters, so neither level has parameters of its own; both terms have the definitions below; weight, ramp and
      the deployed U-Net are those of cross teaching.

    With u the entropy of a branch's prediction in units of log C, branch i learns from the hard label of branch j at
    the pixels where j is more certain:

        L_pixel = sum over i of mean over pixels of [u_j < u_i] (1 - u_j) CE(p_i, arg max p_j)

    The branches' features have different widths, so the cosines g between classes are aligned, not the features
    themselves (:func:`class_geometry`). The uncertainty s of a cosine is the sum of both classes' spreads:

        L_feature = sum over i of mean over images and pairs of classes of [s_j < s_i] (g_i - g_j)^2

    Both terms are over the unlabelled images; the teaching branch gets no gradient.

    Trained: 28,982,184 parameters (1 channel, 4 classes), the U-Net and a Swin-UNet; on the paper's 29.11 M see
    :class:`scripts.methods.CrossTeaching`. Deployed: the U-Net, 1,813,764.

    Args:
        **kwargs: of :class:`scripts.methods.CrossTeaching`.
    """

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        n, both = len(image), torch.cat([image, unlabeled])
        features = self.network.decode_levels(self.network.encode(both))[-1]
        transformer = cast(SwinUNet, self.transformer)
        outputs = ((self.network.head(features), features), transformer.logits_and_features(both))
        supervised = torch.stack([self.supervised_loss(logits[:n], label) for logits, _ in outputs]).sum()
        logits = [logits[n:].float() for logits, _ in outputs]
        sides = [class_geometry(f[n:], z.softmax(dim=1)) for z, (_, f) in zip(logits, outputs, strict=True)]
        pixel = learn_pixels(*logits) + learn_pixels(*reversed(logits))
        feature = learn_geometry(*sides) + learn_geometry(*reversed(sides))
        return {**self.total(supervised, pixel + feature), "loss_pixel": pixel, "loss_feature": feature}


@torch.no_grad()
def pixel_uncertainty(logits: Tensor) -> Tensor:
    """Entropy ``[B, H, W]`` of the prediction of ``[B, C, H, W]`` logits, in [0, 1]: 1 where all classes are equal."""
    log_p = logits.log_softmax(dim=1)
    return -(log_p.exp() * log_p).sum(dim=1) / math.log(logits.shape[1])


def class_geometry(features: Tensor, probabilities: Tensor) -> Geometry:
    """Geometry of the classes in a branch's features.

    Args:
        features: ``[B, D, h, w]``.
        probabilities: ``[B, C, H, W]``, the weights of the positions for each class.
    """
    means = F.normalize(class_means(features, probabilities), dim=2)
    with torch.autocast(features.device.type, enabled=False):
        cosines = means @ F.normalize(features.float().flatten(2), dim=1)
        spread = 1 - (class_shares(features, probabilities) * cosines).sum(dim=2)
        return Geometry(means @ means.transpose(1, 2), spread)


def learn_pixels(learner: Tensor, teacher: Tensor) -> Tensor:
    """L_pixel of one branch: logits ``[B, C, H, W]`` against the other's hard labels where that is more certain."""
    own, other = pixel_uncertainty(learner), pixel_uncertainty(teacher)
    weight = (other < own) * (1 - other)
    return (weight * F.cross_entropy(learner, teacher.detach().argmax(dim=1), reduction="none")).mean()


def learn_geometry(learner: Geometry, teacher: Geometry) -> Tensor:
    """L_feature of one branch: its cosines against the other's where that is more certain."""
    own, other = (side.spread.detach()[:, :, None] + side.spread.detach()[:, None] for side in (learner, teacher))
    return ((other < own) * (learner.cosines - teacher.cosines.detach()) ** 2).mean()
