"""How far the predictions of one image's turned and mirrored copies agree, class by class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["VIEWS", "ClassAgreement", "agreement", "view_logits"]

View = Callable[[Tensor], Tensor]


VIEWS: tuple[tuple[View, View], ...] = (
    (lambda x: x.flip(2), lambda x: x.flip(2)),
    (lambda x: x.flip(3), lambda x: x.flip(3)),
    (lambda x: x.rot90(1, (2, 3)), lambda x: x.rot90(-1, (2, 3))),
)
"""The further passes of images ``[B, C, H, W, ...]``: each a view, and what brings its prediction back."""


@dataclass(frozen=True)
class ClassAgreement:
    """What the passes say of one class in one image, each in [0, 1].

    Attributes:
        agreement: mean over the further passes of the Dice between their mask and the first pass's.
        expected_dice: Dice that the first pass's mask would have if the passes' mean probabilities were right:
            ``2 sum(p m) / (sum(p) + sum(m))``, with the mask m.
        uncertain: share of the voxels that some pass gives to the class on which not all passes do; 0 where none
            gives it any.
    """

    agreement: float
    expected_dice: float
    uncertain: float

    @property
    def score(self) -> float:
        """What a Dice is predicted from: the product of both. Where nothing is found it is 0."""
        return self.agreement * self.expected_dice


@torch.no_grad()
def view_logits(predict: Callable[[Tensor], Tensor], image: Tensor) -> list[Tensor]:
    """Logits of the further passes, turned back onto the image's grid.

    Args:
        predict: gives logits ``[B, K, H, W, ...]`` of images ``[B, C, H, W, ...]``.
        image: ``[B, C, H, W, ...]``.
    """
    return [back(predict(view(image))) for view, back in VIEWS]


def agreement(logits: Tensor) -> list[ClassAgreement]:
    """Compare the passes over one image, on the network's grid.

    Args:
        logits: of all passes ``[passes, K, H, W]`` or ``[passes, K, H, W, slices]``, background first; the first pass
            is the one whose labels are given out.

    Returns:
        one entry for each foreground class.
    """
    logits = logits.float()
    K = logits.shape[1]
    probability = logits.softmax(1).mean(0).flatten(1)  # [K, voxels]
    numbers = torch.arange(K, device=logits.device)[:, None]
    masks = logits.argmax(1).flatten(1)[:, None] == numbers  # [passes, K, voxels]
    first, size = masks[0], masks.sum(-1)
    both = (masks[1:] & first).sum(-1)
    dice = _ratio(2 * both, size[1:] + size[0], 1.0).mean(0)
    expected = _ratio(2 * (probability * first).sum(-1), probability.sum(-1) + size[0], 0.0)
    some, every = masks.any(0).sum(-1), masks.all(0).sum(-1)
    uncertain = _ratio(some - every, some, 0.0)
    rows = torch.stack([dice, expected, uncertain], dim=1)[1:].tolist()
    return [ClassAgreement(*row) for row in rows]


def _ratio(part: Tensor, whole: Tensor, otherwise: float) -> Tensor:
    """``part / whole``, and where there is nothing to divide by, ``otherwise``."""
    return torch.where(whole > 0, part / whole.clamp(min=1e-9), otherwise)
