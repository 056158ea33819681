"""MedFCT (Xie et al., ICME 2023): consistency of a hybrid student with its moving average at three levels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.methods.mean_teacher import MeanTeacher
from scripts.methods.perturbations import noisy
from scripts.networks import FrequencyHybrid
from scripts.networks.frequency_hybrid import Branch
from scripts.similarity import class_means

__all__ = ["MedFCT"]


class MedFCT(MeanTeacher):
    """``L_s + w(t) (L_pixel + L_feature + L_class)``: a mean teacher whose student has two branches.

    There is no public code: this is a re-implementation from the abstract (doi 10.1109/ICME55011.2023.00328) and the
    number of parameters in SemSim's Table I.

    - Known: a mean teacher; the student has a CNN and a Transformer in parallel with a "frequency domain cross-fusion"
      over the full spectrum; the teacher guides the student at the levels of pixels, features and classes.
    - Inferred: the branches are the U-Net and the Swin-UNet of cross teaching, which leave 2.07 M of the reported
      31.18 M parameters for the fusion; the fusion is a learned exchange between both spectra at the three resolutions
      that the encoders share (:class:`scripts.networks.frequency_hybrid.SpectralFusion`, 2.15 M); the three terms have
      the definitions below; weight, ramp and noise are those of SSL4MIS's mean teacher.

    L_s is the sum over both branches. The other terms compare each branch with the same branch of the teacher, whose
    input is the unlabelled image with noise, and are means over both branches. L_pixel is the mean squared error of the
    class probabilities. L_feature is one minus the cosine of the last features, the mean over positions. L_class is
    one minus the cosine of the classes' mean features (:func:`scripts.similarity.class_means`), the mean over images
    and classes.

    Trained: 31,137,064 parameters (1 channel, 4 classes); the paper has 31.18 M. The teacher has as many, which are
    averaged, not trained. Deployed: the student; its prediction is the mean of both branches' logits.

    Args:
        network: a :class:`scripts.networks.FrequencyHybrid`.
        **kwargs: of :class:`scripts.methods.MeanTeacher`.
    """

    def __init__(self, *, network: FrequencyHybrid, **kwargs: Any) -> None:
        super().__init__(network=network, **kwargs)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        taught = self.teacher_branches(unlabeled)
        students = cast(FrequencyHybrid, self.network).branches(torch.cat([image, unlabeled]))
        n = len(image)
        supervised = torch.stack([self.supervised_loss(student.logits[:n], label) for student in students]).sum()
        own = [Branch(*(value[n:].float() for value in student)) for student in students]
        levels = [torch.stack(pair).mean() for pair in zip(*map(agreement, own, taught), strict=True)]
        losses = dict(zip(("loss_pixel", "loss_feature", "loss_class"), levels, strict=True))
        return {**self.total(supervised, torch.stack(levels).sum()), **losses}

    @torch.no_grad()
    def teacher_branches(self, image: Tensor) -> list[Branch]:
        """Outputs of the teacher's branches for images with noise, float32, without gradient."""
        teacher = cast(FrequencyHybrid, self.teacher.module)
        return [Branch(*(value.float() for value in branch)) for branch in teacher.branches(noisy(image, self.noise))]


def agreement(student: Branch, teacher: Branch) -> tuple[Tensor, Tensor, Tensor]:
    """L_pixel, L_feature and L_class between two branches of one network on the same images."""
    p, q = student.logits.softmax(dim=1), teacher.logits.softmax(dim=1)
    pixel = F.mse_loss(p, q)
    feature = 1 - F.cosine_similarity(student.features, teacher.features, dim=1).mean()
    means = class_means(student.features, p), class_means(teacher.features, q)
    return pixel, feature, 1 - F.cosine_similarity(*means, dim=2).mean()
