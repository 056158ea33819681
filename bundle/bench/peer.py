"""A training step of the open code that SemSim follows, as a reference for this bundle's steps.

A re-implementation of UniMatch's medical code (LiheYoung/UniMatch, ``more-scenarios/medical``) from its description:
one pass without gradient in evaluation mode over a second unlabelled batch, whose images are pasted; one pass over
labelled and weak images together, whose decoder gets the features a second time with half of the channels dropped; one
pass over both strong views together. As in that code, everything is in float32 with channels first and PyTorch's own
dropout, and the loader makes the views, so they are not part of the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.networks import UNet

__all__ = ["peer_step"]

THRESHOLD = 0.95


def peer_step(batch: dict[str, Tensor]) -> Callable[[], None]:
    """A step on a batch ``image``, ``label``, ``unlabeled``, from which it makes the strong views and pasted images."""
    network: UNet = cast(Any, UNet()).to(batch["image"].device, memory_format=torch.contiguous_format)
    for block, rate in zip(network.encoder, network.dropout, strict=True):
        cast(Any, block)[3] = nn.Dropout(rate)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    image, label, weak = (batch[name].contiguous() for name in ("image", "label", "unlabeled"))
    strong, pasted = torch.cat([weak.flip(0), weak]), weak.flip(-1)
    box = torch.zeros_like(weak[:, 0], dtype=torch.bool)
    box[:, : weak.shape[-2] // 2, : weak.shape[-1] // 2] = True

    def step() -> None:
        with torch.no_grad():
            network.eval()
            pasted_confidence, pasted_label = network(pasted).softmax(dim=1).max(dim=1)
            network.train()
        features = network.encode(torch.cat([image, weak]))
        both = network.decode([torch.cat([f, F.dropout2d(f, 0.5)]) for f in features])
        prediction, perturbed = both.chunk(2)
        supervised, weak_logits = prediction.split([len(image), len(weak)])
        confidence, target = weak_logits.detach().softmax(dim=1).max(dim=1)
        mixed = torch.where(box, pasted_label, target)
        passed = torch.where(box, pasted_confidence, confidence) >= THRESHOLD
        terms = [_dice(logits, mixed, passed) for logits in network(strong).chunk(2)]
        feature = _dice(perturbed[len(image) :], target, confidence >= THRESHOLD)
        cross_entropy = F.cross_entropy(supervised, label[:, 0].long())
        loss = (cross_entropy + _dice(supervised, label[:, 0])) / 2 + (terms[0] + terms[1]) / 4 + feature / 2
        optimizer.zero_grad()
        (loss / 2).backward()
        optimizer.step()

    return step


def _dice(logits: Tensor, label: Tensor, passed: Tensor | None = None) -> Tensor:
    """Dice loss with squared denominators, class by class."""
    probabilities = logits.softmax(dim=1)
    keep = torch.ones_like(probabilities[:, 0]) if passed is None else passed.float()
    losses = []
    for number in range(logits.shape[1]):
        p, y = probabilities[:, number] * keep, (label == number).float() * keep
        losses.append(1 - (2 * (p * y).sum() + 1e-10) / ((p * p).sum() + (y * y).sum() + 1e-10))
    return torch.stack(losses).mean()
