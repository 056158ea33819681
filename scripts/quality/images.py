"""Similarity of an image to the training images: ranges of a few simple features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes
from torch import Tensor

from scripts.data.readers import shows_photograph

__all__ = ["FEWEST_IMAGES", "image_features", "training_ranges", "unlike"]

FEWEST_IMAGES = 20
"""Minimum number of training images for the ranges."""

WIDENED = 0.1
"""Tolerance outside a range, as a share of its width."""

ROUNDED = 1e-3
"""Tolerance as a share of a bound, for the field of view if it is the same in all training images."""

_WORDS = {
    "dark": "intensities",
    "middle": "intensities",
    "bright": "intensities",
    "roughness": "noise or blur",
    "height_mm": "field of view",
    "width_mm": "field of view",
}


def image_features(image: Tensor) -> dict[str, float]:
    """Features of an image.

    Args:
        image: the network's input, ``[C, H, W]`` or ``[C, H, W, slices]``.

    Returns:
        ``dark``, ``middle``, ``bright``: the quartiles of its values. ``roughness``: mean absolute difference of
        neighbours in a slice over the values' standard deviation; noise raises it, blur lowers it. ``height_mm`` and
        ``width_mm``: the field of view, for a volume whose header has the voxel size.
    """
    values = image.float() if not isinstance(image, MetaTensor) else image.as_tensor().float()
    quartiles = np.quantile(values.cpu().numpy(), [0.25, 0.5, 0.75])
    steps = torch.cat([(values[:, 1:] - values[:, :-1]).flatten(), (values[:, :, 1:] - values[:, :, :-1]).flatten()])
    features = dict(zip(("dark", "middle", "bright"), map(float, quartiles), strict=True))
    features["roughness"] = float(steps.abs().mean() / values.std().clamp(min=1e-6))
    return features | _field_of_view(image)


def training_ranges(features: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Lowest and highest value of each feature that all training images have.

    Args:
        features: of each training image, see :func:`image_features`.

    Returns:
        ``{name: [low, high]}``; nothing for fewer than :data:`FEWEST_IMAGES` images.
    """
    rows = list(features)
    if len(rows) < FEWEST_IMAGES:
        return {}
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: [round(bound([row[name] for row in rows]), 6) for bound in (min, max)] for name in names}


def unlike(features: Mapping[str, float], ranges: Mapping[str, Sequence[float]]) -> list[str]:
    """Features of an image outside the training images' ranges, in words.

    Args:
        features: of :func:`image_features`.
        ranges: of :func:`training_ranges`.
    """
    found = []
    for name, (low, high) in ranges.items():
        slack = WIDENED * (high - low) + ROUNDED * abs(high)
        if name in features and not low - slack <= features[name] <= high + slack:
            found.append(_WORDS[name])
    return [f"{words} unlike the training images'" for words in dict.fromkeys(found)]


def _field_of_view(image: Tensor) -> dict[str, float]:
    if not isinstance(image, MetaTensor) or image.ndim != 4:
        return {}
    if shows_photograph(image):
        return {}
    sizes = voxel_sizes(np.asarray(image.affine, dtype=np.float64))
    height, width = (float(size) * length for size, length in zip(sizes[:2], image.shape[1:3], strict=True))
    return {"height_mm": height, "width_mm": width}
