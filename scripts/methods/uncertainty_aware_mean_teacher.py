"""UA-MT (Yu, Wang, Li, Fu and Heng, MICCAI 2019; code: UA-MT, and SSL4MIS for slices)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scripts.methods.consistency import joint_pass
from scripts.methods.mean_teacher import MeanTeacher

__all__ = ["UncertaintyAwareMeanTeacher"]


class UncertaintyAwareMeanTeacher(MeanTeacher):
    """``L_s + w(t) L_c``: mean teacher on the pixels where the teacher is certain.

    The teacher's uncertainty is the entropy u of the mean of its ``passes`` stochastic predictions (dropout and input
    noise): pixels with ``u < (3/4 + 1/4 exp(-5 (1 - t)^2)) ln C`` are used. L_c is the mean over these pixels and the
    classes of ``(p_student(x) - p_teacher(x + noise))^2``, with one more pass of the teacher as the target; 0 without
    such pixels.

    Trained and deployed: as :class:`MeanTeacher`. Deviations: the reference code's two constants of a binary task are
    generalised: ln 2 to the largest entropy ln C, the divisor 2 to the number of classes (with 4 classes SSL4MIS keeps
    ln 2, a stricter gate, and 2, twice the loss). It makes two passes at a time, we make one.

    Args:
        passes: stochastic passes of the teacher, T.
        **kwargs: of :class:`MeanTeacher`.

    Raises:
        ValueError: for less than one pass.
    """

    capturable = True

    def __init__(self, *, passes: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if passes < 1:
            raise ValueError(f"passes: expected at least 1 stochastic pass, found {passes}.")
        self.passes = passes

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch; ``coverage_teacher`` is the share of pixels where the teacher is certain."""
        image, label, unlabeled, _ = self.weak_views(batch)
        target = self.teach(unlabeled)
        mean = torch.stack([self.teach(unlabeled) for _ in range(self.passes)]).mean(dim=0)
        entropy = torch.special.entr(mean).sum(dim=1)
        certain = entropy < (0.75 + 0.25 * self.ramp_up()) * math.log(mean.shape[1])

        logits, unlabeled_logits = joint_pass(self.network, image, unlabeled)
        distance = (unlabeled_logits.softmax(dim=1) - target).square().mean(dim=1)
        consistency = (certain * distance).sum() / certain.sum().clamp_min(1)
        losses = self.total(self.supervised_loss(logits, label), consistency)
        return {**losses, "coverage_teacher": certain.float().mean()}
