"""Losses and pseudo-labels that the objectives share."""

from __future__ import annotations

from typing import NamedTuple

from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["MaskedDice", "PseudoLabel", "coverage", "pseudo_label"]


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


class MaskedDice(nn.Module):
    """Dice loss with squared denominators and background, over a mask of pixels.

    Sums run over the batch (``per_image=False``), the loss is the mean over the classes. Pixels outside the mask are
    removed from all sums; with an empty mask the loss is 0 and still attached to the graph.

    Args:
        per_image: sums over each image and the mean over images, instead of sums over the batch.
    """

    def __init__(self, per_image: bool = False) -> None:
        super().__init__()
        self.dice = DiceLoss(squared_pred=True, batch=not per_image)

    def forward(self, logits: Tensor, label: Tensor, passed: Tensor | None = None) -> Tensor:
        """Loss of ``[B, C, h, w]`` logits against ``[B, h, w]`` labels, ``passed`` ``[B, h, w]`` boolean or None."""
        probabilities = logits.float().softmax(dim=1)
        onehot = F.one_hot(label.long(), logits.shape[1]).movedim(-1, 1).to(probabilities.dtype)
        if passed is not None:
            keep = passed[:, None].to(probabilities.dtype)
            probabilities, onehot = probabilities * keep, onehot * keep
        loss: Tensor = self.dice(probabilities, onehot)
        return loss


def coverage(name: str, target: PseudoLabel, threshold: float) -> dict[str, Tensor]:
    """Shares of pixels whose confidence reaches the threshold: of all pixels, and of those with a foreground label.

    Returns:
        Scalars in [0, 1] named ``coverage_{name}`` and ``coverage_{name}_foreground`` (0 without any foreground).
    """
    passed = target.confidence >= threshold
    foreground = target.label > 0
    share = (passed & foreground).sum() / foreground.sum().clamp_min(1)
    return {f"coverage_{name}": passed.float().mean(), f"coverage_{name}_foreground": share}
