"""BCP (Bai et al., "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.losses import PseudoLabel, pseudo_label
from scripts.methods.base import Objective, WeakViews
from scripts.methods.teacher import MovingAverage

__all__ = ["BCP", "largest_components"]


class BCP(Objective):
    """Pre-training on labelled images pasted into each other, then self-training on labelled and unlabelled images.

    At each step one box of two thirds of the image's height and width is drawn for the whole batch, cut out of one
    image and pasted into another. With a region loss ``L(y, M)``, the mean of the cross-entropy over the pixels M and
    of their Dice loss, a mixed image costs ``w_out L(y_out, outside) + w_box L(y_box, box)``.

    - Pre-training: boxes of one half of the labelled images in the other half, both weights 1.
    - Self-training: boxes of labelled images in unlabelled ones and boxes of unlabelled images in labelled ones, the
      sum of both costs. Labels have weight 1, pseudo-labels ``unlabeled_weight``. A pseudo-label is the arg max of a
      mean teacher, reduced to the largest connected component of each class in each image.

    At the end of pre-training the teacher is a copy of the student; from then on it is the student's average. It
    predicts in train mode, with dropout and the statistics of its own batch, as in the reference code
    (DeepMed-Lab-ECNU/BCP).

    Trained and deployed: the network, 1,813,764 parameters (1 channel, 4 classes); as many again are averaged, not
    trained. The phase depends on the iteration's share of the training, so a run must be resumed with its original
    length.

    Deviations from the reference code: self-training starts from the last weights of pre-training, not the best by
    validation, and the learning rate falls over both phases instead of being constant; all methods here share this
    schedule. The teacher predicts the unlabelled batch in one pass, not each half under its own batch statistics. Its
    batch-norm averages, which are unused, are copied instead of averaged. Halves of an odd batch share an image.

    Args:
        pretraining: share of the training that is pre-training, in [0, 1]; the reference's 10,000 of 40,000 iterations.
        unlabeled_weight: weight of the pseudo-labelled region.
        decay: decay of the teacher's average, in [0, 1).
        **kwargs: of :class:`scripts.methods.Objective`. Threshold and strong view are not used.

    Raises:
        ValueError: for a share outside [0, 1], a negative weight or a decay outside [0, 1).
    """

    def __init__(
        self, *, pretraining: float = 0.25, unlabeled_weight: float = 0.5, decay: float = 0.99, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= pretraining <= 1:
            raise ValueError(f"pretraining: expected a share of the training in [0, 1], found {pretraining}.")
        if unlabeled_weight < 0:
            raise ValueError(f"unlabeled_weight: expected a weight of at least 0, found {unlabeled_weight}.")
        self.pretraining = pretraining
        self.unlabeled_weight = unlabeled_weight
        self.teacher = MovingAverage(self.network, decay)

    @property
    def switch(self) -> int:
        """First iteration, from 0, of self-training."""
        return round(self.pretraining * self.total_iterations)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        if self.iteration < self.switch:
            image, label = self.labeled_view(batch)
            count = (len(image) + 1) // 2
            (image_a, label_a), (image_b, label_b) = _halves(count, image, label)
            mixed = self.mixed_loss(image_a, label_a, image_b, label_b, self.draw_box(image), (1.0, 1.0))
            return {"loss": mixed, "loss_labeled": mixed}

        views = self.weak_views(batch)
        target = self.teach(views.unlabeled).label
        count = (max(len(views.image), len(views.unlabeled)) + 1) // 2
        (image_a, label_a), (image_b, label_b) = _halves(count, views.image, views.label)
        (other_a, target_a), (other_b, target_b) = _halves(count, views.unlabeled, target)
        box, weight = self.draw_box(views.image), self.unlabeled_weight
        outwards = self.mixed_loss(other_a, target_a, image_a, label_a, box, (weight, 1.0))
        inwards = self.mixed_loss(image_b, label_b, other_b, target_b, box, (1.0, weight))
        return {"loss": outwards + inwards, "loss_in_unlabeled": outwards, "loss_in_labeled": inwards}

    def pseudo_labels(self, views: WeakViews) -> dict[str, PseudoLabel]:
        """``decoder``: the student's own, used in no loss; ``teacher``: the targets of self-training."""
        return {**super().pseudo_labels(views), "teacher": self.teach(views.unlabeled)}

    def after_step(self) -> None:
        """Copy the student at the end of pre-training, then average it."""
        if self.iteration + 1 >= self.switch:
            self.teacher.update_parameters(self.network)

    @torch.no_grad()
    def teach(self, image: Tensor) -> PseudoLabel:
        """The teacher's pseudo-labels of images ``[B, C, H, W]``, reduced to the largest component of each class."""
        target = pseudo_label(self.teacher(image).float().softmax(dim=1))
        return PseudoLabel(largest_components(target.label, self.network.num_classes), target.confidence)

    @staticmethod
    def draw_box(image: Tensor) -> Tensor:
        """``[H, W]`` boolean, true in a box of two thirds of both sides anywhere in the image."""
        sides = image.shape[-2:]
        inside = []
        for side in sides:
            length = 2 * side // 3
            start = int(torch.randint(side - length, ()))
            index = torch.arange(side, device=image.device)
            inside.append((index >= start) & (index < start + length))
        return inside[0][:, None] & inside[1]

    def mixed_loss(
        self,
        image: Tensor,
        label: Tensor,
        pasted: Tensor,
        pasted_label: Tensor,
        box: Tensor,
        weights: tuple[float, float],
    ) -> Tensor:
        """Loss of images with a box pasted from other images.

        Args:
            image: ``[B, C, H, W]``.
            label: labels of ``image``, ``[B, H, W]``.
            pasted: images that fill the box, ``[B, C, H, W]``.
            pasted_label: labels of ``pasted``, ``[B, H, W]``.
            box: of :meth:`draw_box`.
            weights: weight of the region outside the box and of the box.
        """
        logits = self.network(torch.where(box, pasted, image)).float()
        mixed = torch.where(box, pasted_label.long(), label.long())
        pixels = F.cross_entropy(logits, mixed, reduction="none")
        loss = logits.new_zeros(())
        for region, weight in zip((~box, box), weights, strict=True):
            passed = region.expand_as(mixed)
            cross_entropy = (pixels * passed).sum() / passed.sum()
            loss = loss + weight * (cross_entropy + self.dice(logits, mixed, passed)) / 2
        return loss


def _halves(count: int, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The first ``count`` and the next ``count`` entries of tensors, cyclically."""
    order = torch.arange(2 * count, device=tensors[0].device) % len(tensors[0])
    return tuple(t[order[:count]] for t in tensors), tuple(t[order[count:]] for t in tensors)


def largest_components(label: Tensor, num_classes: int, rounds: int = 8) -> Tensor:
    """Keep the largest 8-connected component of each foreground class in each image.

    Each pixel stores the index of a root pixel, at first its own. In each round a pixel takes the smallest root (in
    reading order) among its neighbours of the same class, its former root takes it too, and roots are replaced by their
    own roots (pointer jumping), so the number of rounds grows with the logarithm of a component's length. All images
    and classes are processed at once on the batch's device without waiting for the host. MONAI's
    KeepLargestConnectedComponent processes images and classes one by one and, without cupy, on the host. Eight slices
    of 224 x 224 pixels take 0.2 s of one CPU core, about a twentieth of a training step.

    Of components of equal size the first in reading order is kept, as in the reference code.

    Args:
        label: ``[B, H, W]`` integers in [0, num_classes).
        num_classes: background included.
        rounds: number of rounds. Six suffice for random dots of any density, eight for a spiral that fills 224 x 224
            pixels; a component that needs more counts as several.

    Returns:
        ``[B, H, W]`` int64, 0 where a component was removed.
    """
    label = label.long()
    pixels = label[0].numel()
    # Roots are counted backwards, so that max finds the first pixel: pixel p has the index pixels - 1 - p.
    names = torch.arange(pixels - 1, -1, -1, device=label.device)
    name = names.expand(len(label), -1)
    alike = [(neighbour == label) & (label > 0) for neighbour in _neighbours(label)]
    for _ in range(rounds):
        seen = name.view_as(label)
        for neighbour, same in zip(_neighbours(seen), alike, strict=True):
            seen = torch.maximum(seen, neighbour * same)
        seen = seen.flatten(1)
        name = seen.scatter_reduce(1, pixels - 1 - name, seen, "amax")
        for _ in range(2):
            name = name.gather(1, pixels - 1 - name)
    size = torch.zeros_like(name).scatter_add_(1, pixels - 1 - name, torch.ones_like(name))
    rank = size * pixels + names
    classes = label.flatten(1)
    best = rank.new_zeros(len(label), num_classes).scatter_reduce_(1, classes, rank, "amax")
    keep = name == (best % pixels).gather(1, classes)
    return torch.where(keep.view_as(label), label, 0)


def _neighbours(x: Tensor) -> list[Tensor]:
    """The eight shifted copies of ``[B, H, W]``, one per neighbour, 0 outside."""
    height, width = x.shape[1:]
    padded = F.pad(x, (1, 1, 1, 1))
    offsets = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]
    return [padded[:, row : row + height, column : column + width] for row, column in offsets]
