"""Overlap and surface distances of segmentations, for evaluation after training.

Validation during training uses MONAI's Dice. This module adds what MONAI's metrics lack: HD95 over the pooled surface
distances of both directions, distances in voxels and in millimetres, and defined scores for empty masks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.metrics import CumulativeIterationMetric
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

__all__ = ["COUNTS", "MEASURES", "SegmentationMetric", "dice", "segmentation_scores", "surface_distances"]

MEASURES = ("dsc", "hd95_voxels", "assd_voxels", "hd95_mm", "assd_mm")
"""Names of the scores of one class, in the order of the reports."""

COUNTS = ("one_empty", "both_empty")
"""Names of the counts of empty masks, reported after the scores."""


def dice(pred: NDArray[np.bool_], label: NDArray[np.bool_]) -> float:
    """Dice similarity coefficient of two masks.

    Args:
        pred: predicted mask, boolean, any shape.
        label: reference mask, boolean, same shape.

    Returns:
        A value in [0, 1]; 1 where both masks are empty, 0 where only one is.
    """
    total = int(np.count_nonzero(pred)) + int(np.count_nonzero(label))
    return 2.0 * int(np.count_nonzero(pred & label)) / total if total else 1.0


def surface_distances(
    pred: NDArray[np.bool_], label: NDArray[np.bool_], spacing: Sequence[float] | None = None
) -> tuple[float, float]:
    """HD95 and average symmetric surface distance of two non-empty masks.

    The surface of a mask is its voxels with a background voxel among their face neighbours; outside the array
    everything is background. HD95 is the 95th percentile of the distances of both directions pooled, ASSD the mean
    of the two directed means.

    Args:
        pred: predicted mask, boolean ``[X, Y]`` or ``[X, Y, Z]``, not empty.
        label: reference mask, boolean, same shape, not empty.
        spacing: size of a voxel along each axis; ``None`` measures in voxels.

    Returns:
        HD95 and ASSD, in the unit of ``spacing``.

    Raises:
        ValueError: if a mask is empty; the distance is undefined.
    """
    if not pred.any() or not label.any():
        raise ValueError("Surface distances need two non-empty masks.")
    # The distances do not depend on the background outside the joint bounding box.
    box = ndimage.find_objects((pred | label).view(np.uint8))[0]
    pred, label = pred[box], label[box]
    pred_surface = pred ^ ndimage.binary_erosion(pred)
    label_surface = label ^ ndimage.binary_erosion(label)
    to_label = ndimage.distance_transform_edt(~label_surface, sampling=spacing)[pred_surface]
    to_pred = ndimage.distance_transform_edt(~pred_surface, sampling=spacing)[label_surface]
    hd95 = np.percentile(np.concatenate([to_label, to_pred]), 95)
    return float(hd95), float((to_label.mean() + to_pred.mean()) / 2)


def segmentation_scores(
    pred: NDArray[np.integer], label: NDArray[np.integer], num_classes: int, spacing: Sequence[float] | None = None
) -> dict[str, dict[str, float | None]]:
    """Scores of one label map, for each foreground class and their mean.

    A class absent from both maps has DSC 1 and distances 0. A class present in one map only has DSC 0 and the
    diagonal of the volume as its distances. Both cases are counted.

    Args:
        pred: predicted classes, integers in ``[0, num_classes)``, ``[X, Y]`` or ``[X, Y, Z]``.
        label: reference classes, same shape and range.
        num_classes: number of classes, background (0) included.
        spacing: size of a voxel along each axis in mm; ``None`` (photographs) leaves the distances in mm ``None``.

    Returns:
        ``{"1": {...}, ..., "mean": {...}}``; each entry holds the ``MEASURES`` and the ``COUNTS`` (0 or 1 for a
        class, the number of such classes for the mean).

    Raises:
        ValueError: if the shapes differ or a value is not a class.
    """
    if pred.shape != label.shape:
        raise ValueError(f"prediction {list(pred.shape)} and label {list(label.shape)} differ in shape.")
    for name, classes in (("prediction", pred), ("label", label)):
        low, high = classes.min(), classes.max()
        if low < 0 or high >= num_classes:
            raise ValueError(f"{name} holds values from {low} to {high}, expected classes 0 to {num_classes - 1}.")
    scores = {str(i): _class_scores(pred == i, label == i, spacing) for i in range(1, num_classes)}
    per_class = list(scores.values())
    scores["mean"] = {name: _mean([entry[name] for entry in per_class]) for name in MEASURES}
    scores["mean"].update({name: sum(int(entry[name] or 0) for entry in per_class) for name in COUNTS})
    return scores


class SegmentationMetric(CumulativeIterationMetric):
    """:func:`segmentation_scores` as a metric of MONAI: it scores each volume and collects the scores.

    Call it with predicted and true label maps, as a batch ``[B, 1, X, Y(, Z)]`` or as lists of ``[1, X, Y(, Z)]``. The
    affine of a predicted 3-D :class:`MetaTensor` gives the voxel size; maps without it have no distances in mm. A
    volume of one slice is scored in its plane: in 3-D all of its voxels would be surface.

    ``get_buffer()`` returns ``[N, K, M]`` in float64, gathered from all processes: N volumes, K the foreground classes
    and their mean, M the :data:`MEASURES` and :data:`COUNTS`; undefined values are NaN.

    Args:
        num_classes: number of classes, background included.

    Raises:
        ValueError: when called, see :func:`segmentation_scores`.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def _compute_tensor(self, y_pred: Tensor, y: Tensor | None = None, **kwargs: Any) -> Tensor:
        assert y is not None
        return torch.stack([self._scores(pred, label) for pred, label in zip(y_pred, y, strict=True)])

    def _scores(self, pred: Tensor, label: Tensor) -> Tensor:
        """Scores ``[K, M]`` of one volume."""
        spacing = voxel_sizes(np.asarray(pred.affine)) if isinstance(pred, MetaTensor) and pred.ndim > 3 else None
        flat = tuple(axis for axis, n in enumerate(pred.shape[1:]) if n == 1 and pred.shape == label.shape)
        scores = segmentation_scores(
            pred[0].cpu().numpy().squeeze(flat),
            label[0].cpu().numpy().squeeze(flat),
            self.num_classes,
            None if spacing is None else np.delete(spacing, flat).tolist(),
        )
        rows = [[entry[name] for name in (*MEASURES, *COUNTS)] for entry in scores.values()]
        return torch.tensor([[math.nan if v is None else v for v in row] for row in rows], dtype=torch.float64)

    def aggregate(self) -> float:
        """Mean foreground DSC over the volumes; NaN without a volume."""
        buffer = self.get_buffer()
        return math.nan if buffer is None else float(buffer[:, -1, MEASURES.index("dsc")].mean())


def _class_scores(
    pred: NDArray[np.bool_], label: NDArray[np.bool_], spacing: Sequence[float] | None
) -> dict[str, float | None]:
    """Scores of one class from its two masks."""
    empty = int(not pred.any()) + int(not label.any())
    units = {"voxels": (1.0,) * pred.ndim, "mm": spacing}
    scores: dict[str, float | None] = {"dsc": dice(pred, label)}
    for unit, size in units.items():
        hd95: float | None
        assd: float | None
        if size is None:
            hd95 = assd = None
        elif empty == 2:
            hd95 = assd = 0.0
        elif empty == 1:
            hd95 = assd = float(np.linalg.norm(np.multiply(pred.shape, size)))
        else:
            hd95, assd = surface_distances(pred, label, size)
        scores[f"hd95_{unit}"], scores[f"assd_{unit}"] = hd95, assd
    scores["one_empty"], scores["both_empty"] = int(empty == 1), int(empty == 2)
    return scores


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the defined values; ``None`` without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
