"""Semantic similarity within an image and across images: pure functions on tensors, no state.

Symbols follow the paper: ``f~`` features ``[B, D, h, w]``, C classes, J labelled images, N regions per side.
Everything is differentiable except :func:`agreement`. Computations across images are in float32 under autocast, because
Eq. 12 multiplies differences of 1e-3 by a thousand; the attention within an image runs in the features' dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.losses import one_hot
from scripts.networks.attention import attention

__all__ = [
    "Prototypes",
    "agreement",
    "class_means",
    "class_shares",
    "cross_logits",
    "majority_labels",
    "nearest_divisor",
    "query_similarity",
    "refine_by_affinity",
    "region_prototypes",
]


class Prototypes(NamedTuple):
    """Class prototypes of the regions of labelled images (Eq. 7).

    Attributes:
        vectors: ``[J, rows, columns, C, D]`` float32; zeros for a class that no labelled image shows.
        present: ``[C]`` boolean, whether any labelled image shows the class.
    """

    vectors: Tensor
    present: Tensor


def _unit(x: Tensor) -> Tensor:
    """Unit vectors along dimension 1 in float32. A zero vector stays zero: its similarity to anything is 0."""
    return F.normalize(x.float(), dim=1, eps=1e-6)


def refine_by_affinity(logits: Tensor, features: Tensor, temperature: float = 0.1, space: str = "logit") -> Tensor:
    """Spread a prediction along the affinity of the features within each image (Eqs. 4-5).

    ``M = softmax(cos(f_i, f_j) / T)`` over j; space ``logit`` gives ``z + M z``, space ``probability`` gives
    ``log((p + M p) / 2)`` with ``p = softmax(z)``: the softmax of the result is the refined prediction. This is
    attention with the features as queries and keys and the prediction as values, so M is never stored.

    Args:
        logits: decoder logits ``[B, C, h, w]`` at the features' size.
        features: ``[B, D, h, w]``.
        temperature: T, positive; 1 is the paper's literal reading.
        space: ``logit`` or ``probability``.

    Returns:
        Refined logits ``[B, C, h, w]``, float32.

    Raises:
        ValueError: for another ``space``.
    """
    if space not in ("logit", "probability"):
        raise ValueError(f"affinity space: expected 'logit' or 'probability', found {space!r}.")
    logits = logits.float()
    values = logits if space == "logit" else logits.softmax(dim=1)
    query = _unit(features).to(features.dtype).flatten(2).transpose(1, 2).unsqueeze(1)
    tokens = values.flatten(2).transpose(1, 2).unsqueeze(1).to(query.dtype)
    spread = attention(query, query, tokens, scale=1.0 / temperature)
    spread = spread.squeeze(1).transpose(1, 2).reshape_as(values).float()
    return values + spread if space == "logit" else ((values + spread) / 2).clamp_min(1e-8).log()


def majority_labels(labels: Tensor, size: Sequence[int], num_classes: int) -> Tensor:
    """Labels at the features' size: the majority class of each position's cell.

    Sampling one pixel instead would shift the labels relative to the features by up to half a cell.

    Args:
        labels: ``[B, H, W]``, integers in [0, num_classes).
        size: ``(h, w)`` of the features.
        num_classes: C.

    Returns:
        ``[B, h, w]`` integers; the lower class in case of a tie.
    """
    height, width = size
    return F.adaptive_avg_pool2d(one_hot(labels, num_classes), (height, width)).argmax(dim=1)


def nearest_divisor(size: int, wanted: int) -> int:
    """The divisor of ``size`` nearest to ``wanted``; the smaller one in case of a tie."""
    nearest = 1
    for divisor in range(2, size + 1):  # a loop that a compiler can follow
        if size % divisor == 0 and abs(divisor - wanted) < abs(nearest - wanted):
            nearest = divisor
    return nearest


def region_prototypes(features: Tensor, labels: Tensor, num_classes: int, regions: int = 4) -> Prototypes:
    """Mean feature of each class in each region of each labelled image (Eq. 7).

    If a class is absent from a region, the image's mean of the class replaces it (the paper); if absent from the image,
    the mean over the batch; if absent from all images, it is marked absent.

    Args:
        features: ``[J, D, h, w]``.
        labels: ``[J, h, w]``, integers in [0, num_classes).
        num_classes: C.
        regions: N, regions per side; the nearest divisors of h and w are used.

    Returns:
        :class:`Prototypes`, float32.
    """
    images, _, height, width = features.shape
    rows, columns = nearest_divisor(height, regions), nearest_divisor(width, regions)
    with torch.autocast(features.device.type, enabled=False):
        tokens = _regions(features.float(), rows, columns)
        member = _regions(one_hot(labels, num_classes), rows, columns)
        sums = (member.transpose(1, 2) @ tokens).view(images, rows, columns, num_classes, -1)
        counts = member.sum(dim=1).view(images, rows, columns, num_classes, 1)
        image_sums, image_counts = sums.sum(dim=(1, 2), keepdim=True), counts.sum(dim=(1, 2), keepdim=True)
        batch_sums, batch_counts = image_sums.sum(dim=0, keepdim=True), image_counts.sum(dim=0, keepdim=True)
        batch_mean = batch_sums / batch_counts.clamp_min(1)
        image_mean = torch.where(image_counts > 0, image_sums / image_counts.clamp_min(1), batch_mean)
        vectors = torch.where(counts > 0, sums / counts.clamp_min(1), image_mean)
    return Prototypes(vectors, batch_counts.flatten() > 0)


def query_similarity(features: Tensor, prototypes: Prototypes) -> Tensor:
    """Cosine of each pixel's feature with the prototypes of the same region of every labelled image (Eq. 8).

    Args:
        features: ``[B, D, h, w]``, of the size of the prototypes' features.
        prototypes: of J labelled images and C classes.

    Returns:
        m, ``[B, J, C, h, w]`` float32 in [-1, 1].
    """
    batch, _, height, width = features.shape
    images, rows, columns, classes, _ = prototypes.vectors.shape
    with torch.autocast(features.device.type, enabled=False):
        tokens = F.normalize(_regions(features.float(), rows, columns), dim=-1, eps=1e-6)
        tokens = tokens.view(batch, rows * columns, -1, tokens.shape[-1]).transpose(0, 1).flatten(1, 2)
        vectors = F.normalize(prototypes.vectors, dim=-1, eps=1e-6).permute(1, 2, 0, 3, 4)
        vectors = vectors.reshape(rows * columns, images * classes, -1)
        cosine = tokens @ vectors.transpose(1, 2)
        cosine = cosine.view(rows, columns, batch, height // rows, width // columns, images, classes)
        return cosine.permute(2, 5, 6, 0, 3, 1, 4).reshape(batch, images, classes, height, width)


def cross_logits(
    similarity: Tensor, present: Tensor, temperature: float = 0.05, exclude: Tensor | None = None
) -> Tensor:
    """Prediction by querying the labelled images (Eq. 9), as logits: ``logsumexp_j m(j, c) / T``.

    Args:
        similarity: m, ``[B, J, C, h, w]``.
        present: ``[C]`` boolean; absent classes get probability 0.
        temperature: T_c, positive; 1 is the paper's literal reading, under which no pixel reaches confidence .95.
        exclude: optional ``[B, J]`` boolean, labelled images that a query must not use (at least one must remain).

    Returns:
        ``[B, C, h, w]`` float32; its softmax over the classes is Eq. 9.
    """
    scaled = similarity / temperature
    floor = torch.finfo(scaled.dtype).min
    if exclude is not None:
        scaled = scaled.masked_fill(exclude[:, :, None, None, None], floor)
    return scaled.logsumexp(dim=1).masked_fill(~present[None, :, None, None], floor)


@torch.no_grad()
def agreement(similarity: Tensor, present: Tensor, rate: float = 1000.0) -> Tensor:
    """Agreement of the labelled images on each pixel (Eqs. 10-12, the paper's uncertainty U): 1 where all agree.

    A softmax over the classes at temperature 1 turns the cosines into the distributions that Eq. 11's divergence needs.

    Args:
        similarity: m, ``[B, J, C, h, w]``.
        present: ``[C]`` boolean; absent classes are left out.
        rate: r of Eq. 12.

    Returns:
        U, ``[B, h, w]`` float32 in (0, 1], without gradient.
    """
    log_p = similarity.masked_fill(~present[None, None, :, None, None], torch.finfo(similarity.dtype).min)
    log_p = log_p.log_softmax(dim=2)
    p = log_p.exp()
    log_mean = p.mean(dim=1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny).log()
    # An absent class has p = 0 and contributes nothing, as 0 log 0 = 0.
    divergence = torch.where(p > 0, p * (log_p - log_mean), 0.0).sum(dim=2)
    return torch.exp(-rate * divergence.clamp_min(0)).mean(dim=1)


def class_shares(features: Tensor, probabilities: Tensor) -> Tensor:
    """How much every position counts for every class of its image, ``[B, C, h * w]``, summing to 1 over positions.

    Args:
        features: ``[B, D, h, w]``.
        probabilities: ``[B, C, H, W]``; brought to the features' size by averages.
    """
    height, width = features.shape[-2:]
    share = F.adaptive_avg_pool2d(probabilities.float(), (height, width)).flatten(2)
    return share / share.sum(dim=2, keepdim=True).clamp_min(1e-6)


def class_means(features: Tensor, probabilities: Tensor) -> Tensor:
    """Mean feature of every class in every image, ``[B, C, D]`` float32, weighted by :func:`class_shares`."""
    with torch.autocast(features.device.type, enabled=False):
        return class_shares(features, probabilities) @ features.float().flatten(2).transpose(1, 2)


def _regions(x: Tensor, rows: int, columns: int) -> Tensor:
    """Pixels of each region: ``[B, C, h, w]`` -> ``[B * rows * columns, pixels, C]``."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, rows, height // rows, columns, width // columns)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(batch * rows * columns, -1, channels)
