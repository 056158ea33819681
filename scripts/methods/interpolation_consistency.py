"""Interpolation consistency training, ICT (Verma et al., IJCAI 2019; code: vikasverma1077/ICT, SSL4MIS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn import functional as F  # noqa: N812

from scripts.methods.consistency import TaughtConsistency, joint_pass

__all__ = ["InterpolationConsistency"]


class InterpolationConsistency(TaughtConsistency):
    """``L_s + w(t) L_c``: the prediction of a blend of two unlabelled images is the blend of their predictions.

    ``L_c = mean (p_student(mix(x, x')) - mix(p_teacher(x), p_teacher(x')))^2`` over pixels and classes, with
    ``mix(a, b) = (1 - lambda) a + lambda b``. As in the authors' code, every image is paired with a random image of the
    batch, possibly itself, and one lambda ~ Beta(alpha, alpha) is drawn for the batch. :class:`scripts.methods.ICTMed`
    pairs as SSL4MIS does.

    Trained: the network's 1,813,764 parameters (1 channel, 4 classes); as many again are averaged, not trained.
    Deployed: the student. Deviations: alpha, decay and w(t) are SSL4MIS's (the authors take .999 and up to 100 w(t),
    ramped over a quarter of the training, for image classification) and L_s is the one that all methods share, without
    the authors' mixing of labelled images. Student batches hold labelled and blended images (SSL4MIS).

    Args:
        alpha: parameter of Beta(alpha, alpha), positive.
        **kwargs: of :class:`TaughtConsistency`.

    Raises:
        ValueError: if alpha is not positive.
    """

    def __init__(self, *, alpha: float = 0.2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if alpha <= 0:
            raise ValueError(f"alpha: expected a positive number, found {alpha}.")
        self.alpha = alpha
        self.mixing = Beta(alpha, alpha)

    def pairs(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs to blend and their lambda: indices ``[P]``, ``[P]`` and lambda ``[P or 1]``, on the CPU."""
        return torch.arange(batch), torch.randperm(batch), self.mixing.sample((1,))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        drawn = self.pairs(len(unlabeled))
        first, second, share = (x.to(unlabeled.device, non_blocking=True) for x in drawn)

        def mix(x: Tensor) -> Tensor:
            return torch.lerp(x[first], x[second], share[:, None, None, None])

        target = mix(self.teach(unlabeled))
        logits, mixed_logits = joint_pass(self.network, image, mix(unlabeled))
        consistency = F.mse_loss(mixed_logits.softmax(dim=1), target)
        return self.total(self.supervised_loss(logits, label), consistency)
