"""SS-Net (Wu et al., "Exploring Smoothness and Class-Separation for ... Segmentation", MICCAI 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.losses import dice_loss
from scripts.methods.consistency import RampedConsistency

__all__ = ["SSNet"]


class SSNet(RampedConsistency):
    """``L_s + w(t) (L_adv + separation_weight (L_sep(labeled) + L_sep(unlabeled)))``.

    - ``L_adv``: the prediction is smooth around every image of the batch: Dice loss between the predictions of the
      image and of the image plus the perturbation of length ``magnitude`` that changes it most. As in virtual
      adversarial training its direction is one gradient, taken at a random step of length ``probe`` from the image.
    - ``L_sep``: pixels lie near their class's features in a memory: the mean over the foreground classes' pixels of one
      minus the cosine between their predicted and the stored projected features, divided by the number of classes. A
      pixel's class is its label or the network's arg max. A selector per class gives the pixels' weights, with mean 1.
    - The memory holds, for each foreground class, the ``memory_size`` best features (by the selector) of correctly
      predicted labelled pixels in the last batch with any. It is part of the checkpoint.

    Trained: the network and 7,299 parameters of the heads on the decoder's last features, together 1,821,063 (1
    channel, 4 classes). Deployed: the network, 1,813,764.

    Deviations from the reference code (ycwu1997/SS-Net, whose separation follows Alonso et al., ICCV 2021):

    - L_s is the one that all methods share; the code's 2-D script minimises the Dice loss only.
    - The heads process ``samples`` random pixels of each foreground class instead of all pixels of the batch: the same
      mean in expectation at a fraction of the cost, but their batch norms see all classes equally often.
    - The memory takes the pixels that score highest, as in the paper; the code sorts in ascending order.
    - The code also has selectors for the memory's features and for the background. The former's weights are divided by
      themselves, the latter compares with an empty memory: both have no effect and are left out.
    - The clean prediction in L_adv is that of L_s, not one more pass with other dropout.

    - The lengths are for the code's 256 x 256 pixels; for other sizes they scale with the square root of the number of
      pixels, so that the change per pixel is the same.

    Args:
        magnitude: length of the perturbation of an image in [0, 1], the l2 norm over its pixels and channels at
            256 x 256 pixels.
        separation_weight: weight of both separation losses.
        memory_size: features per class in the memory, at least 2.
        samples: pixels per class on which the heads run, at least ``memory_size``.
        **kwargs: of :class:`scripts.methods.consistency.RampedConsistency`.

    Raises:
        ValueError: if a magnitude or weight is negative, or ``memory_size`` is not in [2, samples].
    """

    probe = 10.0
    reference_size = 256
    width = 32

    def __init__(
        self,
        *,
        magnitude: float = 6.0,
        separation_weight: float = 0.1,
        memory_size: int = 32,
        samples: int = 1024,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value in (("magnitude", magnitude), ("separation_weight", separation_weight)):
            if value < 0:
                raise ValueError(f"{name}: expected a number of at least 0, found {value}.")
        if not 2 <= memory_size <= samples:
            raise ValueError(f"memory_size: expected 2 to {samples} (samples), found {memory_size}.")
        self.magnitude = magnitude
        self.separation_weight = separation_weight
        self.samples = samples
        foreground, width = self.network.num_classes - 1, self.width
        self.projection = _head(self.network.channels[0], width)
        self.prediction = _head(width, width)
        # One selector per class: groups share no weights, and batch norm sees the pixels of one class only.
        self.selectors = nn.Sequential(
            nn.Conv1d(foreground * width, foreground * width, 1, groups=foreground),
            nn.BatchNorm1d(foreground * width),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv1d(foreground * width, foreground, 1, groups=foreground),
        )
        self.memory: Tensor
        self.filled: Tensor
        self.memory_size = memory_size
        self.register_buffer("memory", torch.zeros(foreground, memory_size, width))
        self.register_buffer("filled", torch.zeros(foreground, memory_size, dtype=torch.bool))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        images, count = torch.cat([image, unlabeled]), len(image)
        features = self.network.decode_levels(self.network.encode(images))[-1]
        logits = self.network.head(features).float()
        predicted = logits.argmax(dim=1)

        self.remember(features[:count], torch.where(predicted[:count] == label, predicted[:count], 0))
        parts = {
            "loss_adversarial": self.adversarial_loss(images, logits.detach().softmax(dim=1)),
            "loss_separation_labeled": self.separation_loss(features[:count], label),
            "loss_separation_unlabeled": self.separation_loss(features[count:], predicted[count:]),
        }
        separation = parts["loss_separation_labeled"] + parts["loss_separation_unlabeled"]
        consistency = parts["loss_adversarial"] + self.separation_weight * separation
        return {**self.total(self.supervised_loss(logits[:count], label), consistency), **parts}

    def adversarial_loss(self, images: Tensor, target: Tensor) -> Tensor:
        """L_adv of images ``[B, C, H, W]`` with the probabilities ``[B, classes, H, W]`` that are predicted there."""
        scale = math.sqrt(images[0, 0].numel()) / self.reference_size
        direction = _unit(torch.rand_like(images) - 0.5).requires_grad_()
        distance = self._distance(images + scale * self.probe * direction, target)
        # Only the direction matters; scaled per pixel it does not underflow in float16.
        (gradient,) = torch.autograd.grad(distance * target[0, 0].numel(), direction)
        return self._distance(images + scale * self.magnitude * _unit(gradient), target)

    def _distance(self, images: Tensor, target: Tensor) -> Tensor:
        loss: Tensor = dice_loss(self.network(images).float().softmax(dim=1), target, self.dice.batch)
        return loss

    @torch.no_grad()
    def remember(self, features: Tensor, label: Tensor) -> None:
        """Fill the memory.

        Args:
            features: the decoder's, of labelled images, ``[B, D, H, W]``.
            label: ``[B, H, W]``, 0 where the prediction is wrong.
        """
        vectors, count = self.draw(features, label)
        self.projection.eval()  # as in the reference: with the running averages from the losses' passes
        projected = self._run(self.projection, vectors)
        self.projection.train(self.training)
        score = self._scores(projected)
        distinct = torch.arange(score.shape[1], device=score.device) < count[:, None]
        top, index = score.masked_fill(~distinct, -torch.inf).topk(self.memory.shape[1], dim=1)
        best = projected.gather(1, index[..., None].expand(-1, -1, self.width))
        seen = count[:, None] > 0
        self.memory.copy_(torch.where(seen[..., None], best, self.memory))
        self.filled.copy_(torch.where(seen, top > -torch.inf, self.filled))

    def separation_loss(self, features: Tensor, label: Tensor) -> Tensor:
        """L_sep of decoder features ``[B, D, H, W]`` with labels ``[B, H, W]``."""
        vectors, count = self.draw(features, label)
        predicted = self._run(self.prediction, self._run(self.projection, vectors))
        weight = self._scores(predicted.detach()).sigmoid()
        weight = weight / weight.mean(dim=1, keepdim=True)
        known = self.filled.sum(dim=1)
        remembered = F.normalize(self.memory, dim=2) * self.filled[..., None] / known.clamp_min(1)[:, None, None]
        # The mean distance to unit vectors is the distance to their mean.
        distance = 1 - (F.normalize(predicted, dim=2) * remembered.sum(dim=1, keepdim=True)).sum(dim=2)
        comparable = (count > 1) & (known > 1)
        return ((weight * distance).mean(dim=1) * comparable).sum() / self.network.num_classes

    def draw(self, features: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Random pixels' features of every foreground class.

        Args:
            features: ``[B, D, H, W]``.
            label: ``[B, H, W]``.

        Returns:
            ``[classes - 1, samples, D]``, each row without repetition until a class's pixels are used up, then repeated
            (arbitrary pixels if the class is absent); and the number of distinct pixels, ``[classes - 1]``.
        """
        flat = label.flatten()
        classes = torch.arange(1, self.network.num_classes, device=flat.device)[:, None]
        keys = torch.where(flat == classes, torch.rand(flat.shape, device=flat.device), -1.0)
        top, index = keys.topk(min(self.samples, len(flat)), dim=1)
        count = (top >= 0).sum(dim=1)
        place = torch.arange(index.shape[1], device=flat.device)
        place = place % torch.where(count > 0, count, index.shape[1])[:, None]
        return features.movedim(1, -1).flatten(0, 2)[index.gather(1, place)], count

    @staticmethod
    def _run(head: nn.Module, vectors: Tensor) -> Tensor:
        """A head on the last dimension of ``[classes - 1, samples, D]``, float32."""
        return cast(Tensor, head(vectors.flatten(0, 1))).float().unflatten(0, vectors.shape[:2])

    def _scores(self, vectors: Tensor) -> Tensor:
        """The selectors' scores ``[classes - 1, samples]`` of features ``[classes - 1, samples, width]``."""
        return cast(Tensor, self.selectors(vectors.transpose(1, 2).flatten(0, 1)[None]))[0].float()


def _head(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, width)
    )


def _unit(x: Tensor) -> Tensor:
    """Images ``[B, C, H, W]``, each scaled to length 1; zero stays zero."""
    return x / torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True, dtype=torch.float32).clamp_min(1e-12)
