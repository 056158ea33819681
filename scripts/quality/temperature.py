"""Calibrated probabilities: one temperature for all logits (Guo et al., "On Calibration of Modern Neural Networks").

Dividing logits by a temperature changes no label; above 1 it makes the probabilities more careful.
"""

from __future__ import annotations

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["BOUNDS", "REACH", "contour_band", "fit_temperature", "near_foreground"]

BOUNDS = (0.1, 10.0)
"""Between which a temperature is looked for; what the record's schema accepts."""

REACH = 3
"""Pixels around foreground and contours that count as near them."""


def fit_temperature(logits: Tensor, label: Tensor) -> float:
    """The temperature with the least negative log-likelihood.

    It is convex in the inverse temperature, so that the minimum is the only one.

    Args:
        logits: ``[N, K]`` of voxels.
        label: their true classes, integers ``[N]``.

    Returns:
        a value within :data:`BOUNDS`.

    Raises:
        ValueError: if there is no voxel.
    """
    if not len(label):
        raise ValueError("a temperature needs at least one voxel.")
    logits, label = logits.double(), label.long()
    low, high = (1 / bound for bound in reversed(BOUNDS))
    found = minimize_scalar(lambda scale: float(F.cross_entropy(logits * scale, label)), bounds=(low, high))
    return float(1 / found.x)


def near_foreground(pred: Tensor, label: Tensor) -> Tensor:
    """Where prediction or label have foreground, and :data:`REACH` pixels around it in each slice.

    Far from it the background is certain and right: it would drown what the probabilities are looked at for.

    Args:
        pred: classes ``[H, W, slices]``.
        label: classes, same shape.

    Returns:
        mask of the same shape.
    """
    return _grown(((pred > 0) | (label > 0)), REACH)


def contour_band(label: Tensor) -> Tensor:
    """Pixels within :data:`REACH` of a contour between two classes in their slice, a mask like ``label``.

    Args:
        label: classes ``[H, W, slices]``.
    """
    stack = label.movedim(-1, 0)[:, None].float()
    differs = F.max_pool2d(stack, 3, 1, 1) != -F.max_pool2d(-stack, 3, 1, 1)
    return _grown(differs[:, 0].movedim(0, -1), REACH - 1)


def _grown(mask: Tensor, pixels: int) -> Tensor:
    side = 2 * pixels + 1
    return F.max_pool2d(mask.movedim(-1, 0)[:, None].float(), side, 1, pixels)[:, 0].movedim(0, -1) > 0
