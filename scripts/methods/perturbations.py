"""Perturbations of images, and of encoder and decoder features (Ouali et al., CVPR 2020), as SSL4MIS draws them."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["feature_dropout", "feature_noise", "noisy"]


def noisy(image: Tensor, deviation: float) -> Tensor:
    """Images ``[B, C, H, W]`` with normal noise, truncated at two standard deviations."""
    return image + (deviation * torch.randn_like(image)).clamp(-2 * deviation, 2 * deviation)


def feature_noise(features: Tensor, amplitude: float = 0.3) -> Tensor:
    """``f (1 + n)`` with n uniform in [-amplitude, amplitude], one draw per element, the same for all images.

    Args:
        features: ``[B, D, h, w]``.
        amplitude: largest relative change.
    """
    noise = torch.empty_like(features[:1]).uniform_(-amplitude, amplitude)
    return features + features * noise


def feature_dropout(features: Tensor, low: float = 0.7, high: float = 0.9) -> Tensor:
    """Erase the most active positions of each image: where the channels' mean reaches a share of its maximum.

    Args:
        features: ``[B, D, h, w]``.
        low: smallest share.
        high: largest share; one uniform draw in [low, high] for the batch.
    """
    attention = features.mean(dim=1, keepdim=True)
    share = low + (high - low) * torch.rand((), device=features.device)
    return features * (attention < share * attention.amax(dim=(2, 3), keepdim=True))
