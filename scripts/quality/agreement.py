"""Agreement between the predictions of an image's rotated and mirrored copies, class by class."""

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
"""The further passes of images ``[B, C, H, W, ...]``: each a view and the inverse for its prediction."""


@dataclass(frozen=True)
class ClassAgreement:
    """Agreement of the passes on one class in one image, each value in [0, 1].

    Attributes:
        agreement: mean Dice of the first pass's mask with each further pass's.
        expected_dice: expected Dice of the first pass's mask m if the passes' mean probabilities p were correct:
            ``2 sum(p m) / (sum(p) + sum(m))``.
        uncertain: of the voxels that any pass assigns to the class, the share that not all passes assign; 0 without
            such voxels.
    """

    agreement: float
    expected_dice: float
    uncertain: float

    @property
    def score(self) -> float:
        """The score from which a Dice is predicted: the product of both; 0 if nothing is found."""
        return self.agreement * self.expected_dice


@torch.no_grad()
def view_logits(predict: Callable[[Tensor], Tensor], image: Tensor) -> list[Tensor]:
    """Logits of the further passes, mapped back to the image's grid.

    Args:
        predict: returns logits ``[B, K, H, W, ...]`` of images ``[B, C, H, W, ...]``.
        image: ``[B, C, H, W, ...]``.
    """
    return [back(predict(view(image))) for view, back in VIEWS]


def agreement(logits: Tensor) -> list[ClassAgreement]:
    """Compare the passes over one image, on the network's grid.

    Args:
        logits: of all passes ``[passes, K, H, W]`` or ``[passes, K, H, W, slices]``, background first; the labels of
            the result come from the first pass.

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
    """``part / whole``, or ``otherwise`` if ``whole`` is 0."""
    return torch.where(whole > 0, part / whole.clamp(min=1e-9), otherwise)
