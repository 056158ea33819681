"""Calibrated probabilities: one temperature for all logits (Guo et al., "On Calibration of Modern Neural Networks").

Dividing logits by a temperature changes no label; above 1 it makes the probabilities less confident.
"""

from __future__ import annotations

from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["BOUNDS", "REACH", "contour_band", "fit_temperature", "near_foreground"]

BOUNDS = (0.1, 10.0)
"""Range of the temperature, as in the record's schema."""

REACH = 3
"""Distance in pixels within which a pixel counts as near the foreground or a contour."""


def fit_temperature(logits: Tensor, label: Tensor) -> float:
    """The temperature with the lowest negative log-likelihood.

    The likelihood is convex in the inverse temperature, so the minimum is unique.

    Args:
        logits: ``[N, K]`` of voxels.
        label: their true classes, integers ``[N]``.

    Returns:
        The temperature, within :data:`BOUNDS`.

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
    """Mask of the foreground of prediction or label and of :data:`REACH` pixels around it in each slice.

    The background far from it is certain and correct and would dominate the errors.

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
