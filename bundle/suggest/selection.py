"""Selection of representative cases: features of images, and facility location."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from monai.data import MetaTensor
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch.nn import functional as F  # noqa: N812

from scripts.data import ScaleImaged
from scripts.quality.images import image_features

__all__ = ["Choice", "case_features", "choose", "similarities"]

SIDE = 16  # side of the thumbnails in pixels
DEPTHS = (0.25, 0.5, 0.75)
COMPONENTS = 16


class Choice(NamedTuple):
    """One chosen case.

    Attributes:
        case: its index.
        gain: increase of the covered share of all weight, in [0, 1].
        members: cases whose nearest chosen or labelled case it is, itself included.
    """

    case: int
    gain: float
    members: tuple[int, ...]


def case_features(volume: MetaTensor) -> NDArray[np.float64]:
    """Simple features of an image: thumbnails of three slices and :func:`image_features`.

    Args:
        volume: ``[C, rows, columns, slices]``.
    """
    scaled = ScaleImaged("image", (1, 99))({"image": volume})["image"]
    slices = scaled.as_tensor()[..., [round(depth * (scaled.shape[-1] - 1)) for depth in DEPTHS]].movedim(-1, 0)
    thumbnails = F.interpolate(slices, (SIDE, SIDE), mode="bilinear", antialias=True)
    numbers = image_features(scaled)
    sizes = [np.log(numbers.get(name, 1.0)) for name in ("height_mm", "width_mm")]
    plain = [numbers[name] for name in ("dark", "middle", "bright", "roughness")]
    return np.concatenate([thumbnails.flatten().numpy(), plain, sizes, [np.log(scaled.shape[-1])]])


def similarities(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """Similarity of all pairs of cases in (0, 1], a Gaussian of their distance.

    The distance is Euclidean in the first principal components of the standardized features; the Gaussian's width is
    the median distance.

    Args:
        features: ``[cases, features]``.
    """
    spread = features.std(0)
    known = spread > 0
    standard = (features[:, known] - features[:, known].mean(0)) / spread[known]
    if not known.any():
        return np.ones((len(features), len(features)))
    left, sizes, _ = np.linalg.svd(standard, full_matrices=False)
    components = (left * sizes)[:, :COMPONENTS]
    distances = cdist(components, components)
    apart = distances[~np.eye(len(features), dtype=bool)]
    width = max(float(np.median(apart)), 1e-9) if apart.size else 1.0
    return np.exp(-0.5 * (distances / width) ** 2)


def choose(
    similarity: NDArray[np.float64],
    count: int,
    covered: Sequence[int] = (),
    weights: NDArray[np.float64] | None = None,
) -> list[Choice]:
    """Choose cases greedily by facility location: each time the case that increases the coverage most.

    The sum over the cases of weight times the similarity to the nearest chosen one is submodular: greedy choice reaches
    at least 63 % of the best possible (Nemhauser et al. 1978).

    Args:
        similarity: similarity of all pairs, ``[N, N]``.
        count: number of cases to choose.
        covered: labelled cases: treated as chosen and never suggested.
        weights: weights of the cases, not negative; None: equal weights.
    """
    N = len(similarity)
    weights = np.ones(N) if weights is None else weights
    near = similarity[:, list(covered)].max(1, initial=0.0)
    chosen: list[int] = []
    gains: list[float] = []
    for _ in range(min(count, N - len(covered))):
        gain = (weights[:, None] * np.maximum(similarity - near[:, None], 0)).sum(0)
        gain[[*covered, *chosen]] = -1.0
        best = int(gain.argmax())
        chosen.append(best)
        gains.append(float(gain[best] / max(weights.sum(), 1e-9)))
        near = np.maximum(near, similarity[:, best])
    labeled = [*covered, *chosen]
    owner = np.asarray(labeled)[similarity[:, labeled].argmax(1)] if labeled else np.array([])
    owner[labeled] = labeled
    return [
        Choice(case, gain, tuple(np.flatnonzero(owner == case).tolist()))
        for case, gain in zip(chosen, gains, strict=True)
    ]
