"""Losses and pseudo-labels that the objectives share."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["DiceCE", "MaskedDice", "PseudoLabel", "coverage", "dice_loss", "one_hot", "pseudo_label"]


class PseudoLabel(NamedTuple):
    """A hard pseudo-label with its confidence.

    Attributes:
        label: ``[B, h, w]`` int64, the arg max.
        confidence: ``[B, h, w]`` float32 in (0, 1], the largest probability.
    """

    label: Tensor
    confidence: Tensor


def pseudo_label(probabilities: Tensor) -> PseudoLabel:
    """Pseudo-label of class probabilities ``[B, C, h, w]``, without gradient."""
    confidence, label = probabilities.detach().float().max(dim=1)
    return PseudoLabel(label, confidence)


class DiceCE(nn.Module):
    """Eq. 2: the mean of cross-entropy and Dice, of all classes, with squared denominators.

    Value and gradient are those of MONAI's ``DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True,
    lambda_dice=0.5, lambda_ce=0.5)``, in less time, and a compiler can follow it: MONAI's takes Python numbers out of
    tensors.

    Args:
        batch: Dice sums over the batch instead of over each image.
    """

    def __init__(self, batch: bool = True) -> None:
        super().__init__()
        self.batch = batch

    def forward(self, logits: Tensor, label: Tensor) -> Tensor:
        """Loss of ``[B, C, H, W]`` logits against ``[B, 1, H, W]`` labels, integers in [0, C)."""
        logits = logits.contiguous()  # softmax works in that layout whatever comes
        dice = dice_loss(logits.softmax(dim=1), one_hot(label[:, 0], logits.shape[1]), self.batch)
        return (dice + F.cross_entropy(logits, label[:, 0].long())) / 2


class MaskedDice(nn.Module):
    """Dice loss with squared denominators and background, over a mask of pixels.

    Sums run over the batch (``per_image=False``), the loss is the mean over the classes. Pixels outside the mask are
    removed from all sums; with an empty mask the loss is 0 and still attached to the graph.

    Args:
        per_image: sums over each image and the mean over images, instead of sums over the batch.
    """

    def __init__(self, per_image: bool = False) -> None:
        super().__init__()
        self.batch = not per_image

    def forward(self, logits: Tensor, label: Tensor, passed: Tensor | None = None) -> Tensor:
        """Loss of ``[B, C, H, W]`` logits against ``[B, h, w]`` labels, ``passed`` ``[B, h, w]`` boolean or None."""
        probabilities = logits.float().contiguous().softmax(dim=1)
        onehot = one_hot(label, logits.shape[1])
        if passed is not None:
            keep = passed[:, None].to(probabilities.dtype)
            probabilities, onehot = probabilities * keep, onehot * keep
        return dice_loss(probabilities, onehot, self.batch)


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """``[B, C, h, w]`` float32 of labels ``[B, h, w]``; PyTorch's own looks at the values first, on the host."""
    classes = torch.arange(num_classes, device=label.device)
    return (label[:, None] == classes[:, None, None]).float()


def dice_loss(probabilities: Tensor, target: Tensor, batch: bool) -> Tensor:
    """``1 - 2 sum(p y) / (sum(p^2) + sum(y^2))``, mean over the classes.

    Args:
        probabilities: p, ``[B, C, h, w]``.
        target: y, likewise: one-hot labels, or probabilities.
        batch: sums over the batch instead of over each image, whose mean is then taken too.
    """
    pixels = (0, 2, 3) if batch else (2, 3)
    overlap = (probabilities * target).sum(pixels)
    size = (probabilities * probabilities).sum(pixels) + (target * target).sum(pixels)
    return (1 - (2 * overlap + 1e-5) / (size + 1e-5)).mean()  # the constant is MONAI's


def coverage(name: str, target: PseudoLabel, threshold: float) -> dict[str, Tensor]:
    """Shares of pixels whose confidence reaches the threshold: of all pixels, and of those with a foreground label.

    Returns:
        Scalars in [0, 1] named ``coverage_{name}`` and ``coverage_{name}_foreground`` (0 without any foreground).
    """
    passed = target.confidence >= threshold
    foreground = target.label > 0
    share = (passed & foreground).sum() / foreground.sum().clamp_min(1)
    return {f"coverage_{name}": passed.float().mean(), f"coverage_{name}_foreground": share}
