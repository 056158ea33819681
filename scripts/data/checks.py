"""Checks of a data set before training: each fault names its file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import apply_affine, voxel_sizes

from scripts.data.readers import is_photograph
from scripts.data.transforms import LabelValuesd
from scripts.utils.errors import FaultsError

__all__ = [
    "add_or_raise",
    "check_class_settings",
    "check_class_values",
    "check_classes",
    "check_finite",
    "check_grids",
    "remarks",
]

NARROW = 0.1  # share of an image's range of values below which most voxels indicate outliers
MOST_CLASSES = 256  # label maps are stored in 8 bits


def add_or_raise(found: Sequence[str], faults: list[str] | None) -> None:
    """Add faults to the caller's list, or raise FaultsError without one."""
    if faults is not None:
        faults += found
    elif found:
        raise FaultsError(found)


def check_class_settings(num_classes: int, transforms: Iterable[Any]) -> None:
    """Check that the configured classes fit into a label map and that ``label_values`` has a value for each.

    Args:
        num_classes: classes, background included.
        transforms: transforms of the preprocessing; its :class:`LabelValuesd` has the ``label_values``.

    Raises:
        ValueError: if they do not fit, or a value is not a finite number.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or not 2 <= num_classes <= MOST_CLASSES:
        raise ValueError(
            f"num_classes: expected a whole number in 2..{MOST_CLASSES}, background included, found {num_classes!r}."
        )
    for transform in transforms:
        if not isinstance(transform, LabelValuesd) or (values := transform.values) is None:
            continue
        if strange := [value for value in values if isinstance(value, bool) or not math.isfinite(value)]:
            raise ValueError(f"label_values: expected finite numbers, found {strange[0]!r}.")
        if len(values) != num_classes:
            raise ValueError(
                f"label_values: expected one value for each of the {num_classes} classes (num_classes), found {values}."
            )


def check_class_values(num_classes: int, values: Sequence[float] | None) -> None:
    """The same check for the ``label_values`` themselves; None: label files store the classes.

    Raises:
        ValueError: see :func:`check_class_settings`; also unless they are a list of different numbers.
    """
    check_class_settings(num_classes, [LabelValuesd("label", values)])


def check_finite(image: torch.Tensor, path: str) -> None:
    """Raise ValueError if an image, of any shape, has NaN or infinite values."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{path}: the image has NaN or infinite values.")


def remarks(image: np.ndarray, few_values: bool) -> list[str]:
    """Warnings about an image that is usable but suspicious.

    Args:
        image: preprocessed voxels, of any shape.
        few_values: whether its file has few whole values only, see :class:`scripts.data.LoadImageVolumed`.

    Returns:
        sentences without their subject, the file.
    """
    found = []
    if few_values:
        found.append("looks like a label map: it holds few values, all of them whole.")
    low, high = float(image.min()), float(image.max())
    most_low, most_high = np.percentile(image, (0.1, 99.9))
    if high > low and not few_values and most_high - most_low < NARROW * (high - low):
        share = (most_high - most_low) / (high - low)
        found.append(
            f"has outliers: 99.8 % of its voxels lie within {100 * share:.2g} % of the range of its values, so the "
            "network's input has little contrast; clip the outliers by --percentiles [0.5,99.5]."
        )
    return found


def check_classes(label: torch.Tensor | np.ndarray, path: str, num_classes: int) -> None:
    """Raise ValueError if a label map, of any shape, has values other than 0..num_classes - 1."""
    values = np.unique(np.asarray(label))
    wrong = values[~np.isin(values, np.arange(num_classes))]
    if wrong.size:
        found = ", ".join(f"{v:.9g}" for v in wrong[:5])
        raise ValueError(f"{path}: label values must be 0..{num_classes - 1}, found {found}.")


def check_grids(image: torch.Tensor, label: torch.Tensor, record: Mapping[str, Any]) -> None:
    """Check that image and label are stored on the same grid and that the label has one channel, before resizing.

    Grids match if each corner voxel of the label lies within half a voxel of the image's, because programs round
    headers differently. Photographs have no position in the patient; for them only the directions of the axes are
    compared.

    Args:
        image: loaded image; only a MetaTensor has the grid of its file.
        label: loaded label.
        record: the paths of both.

    Raises:
        ValueError: if the label has several channels, or the files' shapes, axis directions or positions differ.
    """
    if label.shape[0] != 1:
        raise ValueError(f"{record['label']}: a label has one channel, found {label.shape[0]} (colours or a palette).")
    if not isinstance(image, MetaTensor) or not isinstance(label, MetaTensor):
        return
    shapes = [tuple(int(n) for n in t.meta["spatial_shape"]) for t in (image, label)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{record['label']}: label shape {shapes[1]} is not the image's shape {shapes[0]}.")
    if len(shapes[0]) == 3:
        # the files' own axes: reorienting would flip only one of the two
        affines = [np.asarray(t.meta["original_affine"], dtype=np.float64) for t in (image, label)]
        axes = ["".join(nib.aff2axcodes(affine)) for affine in affines]
        if axes[0] != axes[1]:
            raise ValueError(f"{record['label']}: label orientation {axes[1]} is not the image's {axes[0]}.")
        if is_photograph(record["image"]):
            return
        corners = np.array(list(product(*((0, length - 1) for length in shapes[0]))), dtype=np.float64)
        apart = np.abs(apply_affine(np.linalg.inv(affines[0]) @ affines[1], corners) - corners).max()
        if apart > 0.5:
            spacings = [" x ".join(f"{size:.4g}" for size in voxel_sizes(affine)) for affine in affines]
            raise ValueError(
                f"{record['label']}: label and image are not on the same grid: their corners lie {apart:.3g} voxels "
                f"apart (label spacing {spacings[1]} mm, the image's {spacings[0]} mm)."
            )
