"""What a data set must satisfy, checked before training: each fault names its file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor

__all__ = ["check_classes", "check_finite", "check_grids"]


def check_finite(image: torch.Tensor, path: str) -> None:
    """Raise ValueError where an image, of any shape, has NaN or infinite values."""
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{path}: the image has NaN or infinite values.")


def check_classes(label: torch.Tensor | np.ndarray, path: str, num_classes: int) -> None:
    """Raise ValueError where a label map, of any shape, has values other than 0..num_classes - 1."""
    values = np.unique(np.asarray(label))
    wrong = values[~np.isin(values, np.arange(num_classes))]
    if wrong.size:
        found = ", ".join(f"{v:g}" for v in wrong[:5])
        raise ValueError(f"{path}: label values must be 0..{num_classes - 1}, found {found}.")


def check_grids(image: torch.Tensor, label: torch.Tensor, record: Mapping[str, Any]) -> None:
    """Image and label must be stored on the same grid, before resizing makes any two shapes equal; one label each.

    Args:
        image: loaded image; only a MetaTensor knows the grid of its file.
        label: loaded label.
        record: the paths that both come from.

    Raises:
        ValueError: when the label has several channels, or the files' shapes or axis directions differ.
    """
    if label.shape[0] != 1:
        raise ValueError(f"{record['label']}: a label has one channel, found {label.shape[0]} (colours or a palette).")
    if not isinstance(image, MetaTensor) or not isinstance(label, MetaTensor):
        return
    shapes = [tuple(int(n) for n in t.meta["spatial_shape"]) for t in (image, label)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{record['label']}: label shape {shapes[1]} is not the image's shape {shapes[0]}.")
    if len(shapes[0]) == 3:
        # the files' own axes: reorienting would flip one of the two and not the other
        axes = ["".join(nib.aff2axcodes(np.asarray(t.meta["original_affine"]))) for t in (image, label)]
        if axes[0] != axes[1]:
            raise ValueError(f"{record['label']}: label orientation {axes[1]} is not the image's {axes[0]}.")
