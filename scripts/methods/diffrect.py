"""DiffRect (Liu et al., "Latent Diffusion Label Rectification", MICCAI 2024, arXiv:2407.09918)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.losses import PseudoLabel, pseudo_label
from scripts.methods.base import WeakViews
from scripts.methods.consistency import RampedConsistency
from scripts.networks import LabelRectifier

__all__ = ["DiffRect", "contrasted_label"]


class DiffRect(RampedConsistency):
    """``L_s + w(t) L_c + L_rect``: a diffusion model that learns to rectify pseudo-labels teaches the network.

    The rectifier is trained jointly with ``L_s' + L_lat + w(t) (L_c' + L_lat')``. y_w and y_s are the hard labels of
    weak and strong views (:func:`contrasted_label`); the loss between logits and labels is the mean of cross-entropy
    and Dice.

    - L_s, L_c: the labelled weak views against their labels, the unlabelled strong views against y_w.
    - L_s', L_lat: the rectifier maps y_w to the labels; for unlabelled images to y_w itself.
    - L_c', L_lat': the rectifier maps y_s to y_w; its logits are compared with the labels that it made from y_w.
    - L_rect, after ``warm_up`` of the training: the unlabelled weak views against the labels that the
      rectifier samples from noise, conditioned on y_w.

    L_lat and L_lat' are the mean squared error of the denoised bottleneck. The guidance is the Dice loss between the
    labels that the rectifier starts from and those it should reach: of the labelled images for L_s' and L_lat, of the
    unlabelled ones for L_c' and L_lat'.

    Trained: 19,730,840 parameters (1 channel, 4 classes), the U-Net and the rectifier; the paper's Table I has 19.37 M.
    Deployed: the U-Net, 1,813,764. Deviations from the reference code (CUHK-AIM-Group/DiffRect): the denoiser is
    MONAI's with the condition concatenated, not the code's own U-Net with the condition added; upsampling is bilinear,
    not by transposed convolutions; L_rect is part of the single optimiser step, the code takes a second step; the
    complementary-label term that the code adds to L_c and L_c' is left out; cross-entropy and Dice are averaged, as in
    every L_s here, not added.

    Args:
        rectifier: a :class:`scripts.networks.LabelRectifier`.
        contrast: threshold of :func:`contrasted_label`.
        warm_up: share of the training without L_rect, in [0, 1]; the reference's 1,000 of 30,000 iterations.
        **kwargs: of :class:`RampedConsistency`. The threshold is not used.

    Raises:
        ValueError: if ``contrast`` or ``warm_up`` is outside [0, 1].
    """

    def __init__(
        self, *, rectifier: LabelRectifier, contrast: float = 0.8, warm_up: float = 1 / 30, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("contrast", contrast), ("warm_up", warm_up)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: expected a share in [0, 1], found {value}.")
        self.rectifier = rectifier
        self.contrast = contrast
        self.warm_up = warm_up

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        n = len(image)
        weak = torch.cat([image, unlabeled])
        view = self.strong(weak, self.draws)
        weak_logits, strong_logits = self.network(weak).float(), self.network(view.image).float()
        weak_label = self.hard(weak_logits)
        strong_label = self.hard(strong_logits)
        pasted = view.paste(weak_label)  # y_w under the strong view's CutMix

        supervised = self.supervised_loss(weak_logits[:n], label)
        consistency = self.supervised_loss(strong_logits[n:], pasted[n:])
        losses = {"loss_supervised": supervised, "loss_decoder": consistency}

        better = torch.cat([label.long(), weak_label[n:]])
        guidance = self.hard_dice(weak_label[:n], label)
        logits, latent = self.rectifier(weak, weak_label, guidance, better)
        rectified = view.paste(self.hard(logits))
        strong_guidance = self.hard_dice(strong_label[n:], rectified[n:])
        strong_rectified, strong_latent = self.rectifier(view.image, strong_label, strong_guidance, pasted)
        losses |= {
            "loss_rectifier_supervised": self.supervised_loss(logits[:n], label),
            "loss_rectifier_consistency": self.supervised_loss(strong_rectified[n:], rectified[n:]),
            "loss_latent": latent,
            "loss_latent_strong": strong_latent,
        }
        weight = self.consistency_weight * self.ramp_up()
        total = supervised + losses["loss_rectifier_supervised"] + latent
        total = total + weight * (consistency + losses["loss_rectifier_consistency"] + strong_latent)
        if self.iteration >= self.warm_up * self.total_iterations:
            target = self.hard(self.rectifier.sample(unlabeled, weak_label[n:], guidance))
            losses["loss_rectification"] = self.supervised_loss(weak_logits[n:], target)
            total = total + losses["loss_rectification"]
        return {"loss": total, **losses}

    def hard(self, logits: Tensor) -> Tensor:
        """:func:`contrasted_label` of logits ``[B, C, H, W]``."""
        return contrasted_label(logits.detach().softmax(dim=1), self.contrast)

    def hard_dice(self, label: Tensor, other: Tensor) -> Tensor:
        """Dice loss in [0, 1] of two label maps ``[B, H, W]``, the mean over the classes."""
        maps = (F.one_hot(x.long(), self.network.num_classes).float() for x in (label, other))
        a, b = maps
        overlap, size = (a * b).sum(dim=(0, 1, 2)), (a + b).sum(dim=(0, 1, 2))
        return 1 - ((2 * overlap + 1e-5) / (size + 1e-5)).mean()

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """``decoder``: y_w; ``rectified``: what the rectifier samples from it, the target of L_rect."""
        n = len(views.image)
        logits = self.network(torch.cat([views.image, views.unlabeled])).float()
        label = self.hard(logits)
        guidance = self.hard_dice(label[:n], views.label)
        sampled = self.rectifier.sample(views.unlabeled, label[n:], guidance)
        found = {"decoder": logits[n:].softmax(dim=1), "rectified": sampled.softmax(dim=1)}
        return {
            name: PseudoLabel(contrasted_label(p, self.contrast), pseudo_label(p).confidence)
            for name, p in found.items()
        }


def contrasted_label(probabilities: Tensor, contrast: float) -> Tensor:
    """``[B, H, W]`` arg max of ``[B, C, H, W]``, background where no class has enough contrast.

    A class has enough contrast where ``(p - p_min) / p_max > contrast``, with the pixel's extremes p_min and p_max.
    """
    highest, label = probabilities.max(dim=1)
    lowest = probabilities.amin(dim=1)
    return torch.where((highest - lowest) / highest > contrast, label, 0)
