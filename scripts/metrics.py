"""Overlap and surface distances of segmentations, as they are computed at the end of a run.

MONAI's Dice serves during training; what stands here is what MONAI does not give: HD95 over the pooled surface
distances, distances in voxels and in millimetres side by side, and scores for empty masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["COUNTS", "MEASURES", "dice", "segmentation_scores", "surface_distances"]

MEASURES = ("dsc", "hd95_voxels", "assd_voxels", "hd95_mm", "assd_mm")
"""Names of the scores of one class, in the order of the reports."""

COUNTS = ("one_empty", "both_empty")
"""Names of the counts of empty masks that stand beside the scores."""


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

    The surface of a mask is its voxels that have a background voxel among their face neighbours; beyond the array
    everything is background. HD95 is the 95th percentile of the distances of both directions pooled, ASSD the mean
    of the two directed means.

    Args:
        pred: predicted mask, boolean ``[X, Y]`` or ``[X, Y, Z]``, not empty.
        label: reference mask, boolean, same shape, not empty.
        spacing: size of a voxel along each axis; ``None`` measures in voxels.

    Returns:
        HD95 and ASSD, in the unit of ``spacing``.

    Raises:
        ValueError: if a mask is empty: no distance is defined then.
    """
    if not pred.any() or not label.any():
        raise ValueError("Surface distances need two non-empty masks.")
    # Outside the joint bounding box there is only background, which no distance depends on.
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

    A class absent from both maps has DSC 1 and distances 0. A class present in one map only has DSC 0 and, for
    distances, the volume's diagonal. Both cases are counted.

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
    """Mean of the values, ``None`` where they are not defined."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
