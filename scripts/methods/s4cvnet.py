"""S4CVnet (Wang, Li, Zheng and Huang, ECCV Workshops 2022): a CNN, a Vision Transformer and its moving average."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.methods.cross_teaching import CrossTeaching
from scripts.methods.perturbations import noisy
from scripts.methods.teacher import MovingAverage

__all__ = ["S4CVNet"]


class S4CVNet(CrossTeaching):
    """``L_s1 + L_s2 + w(t) (7 L_teach + [t >= t_0] (MSE(p_1, q) + MSE(p_2, q)))``: cross teaching under a guide.

    L_teach is L_c of :class:`CrossTeaching`. The guide is an exponential moving average of the Transformer without a
    gradient; q is its prediction of the unlabelled images under normal noise, truncated at two standard deviations. The
    weight is linear: ``w(t) = consistency_weight t``, t the share of the training. ``loss_consistency`` is L_teach,
    ``loss_guidance`` the sum of both squared errors.

    Trained: 28,982,184 parameters (1 channel, 4 classes), the U-Net and a Swin-UNet; 27,168,420 more are averaged, not
    trained: 56,150,604 in all. Deployed: the U-Net, 1,813,764. SemSim's Table I cites 55.31 M; we could not explain the
    difference, nor which of the three networks, all of which the reference evaluates, gave its figures.

    Deviations from CV-SSL-MIS (``train_cnn_meet_vit_2D.py``, the source of all values; t_0 is its iteration 1,000 of
    30,000): the guide's average starts with the weights after the first step and uses the full decay, the reference's
    decay rises over the first 100 steps, before the guide is used; the guide is always in evaluation mode, the
    reference's after its first validation. For ImageNet weights see :class:`CrossTeaching`.

    Args:
        decay: decay of the guide's average, in [0, 1).
        teaching: weight of L_teach relative to the guidance.
        guidance_start: t_0, the share of the training after which the guide is used.
        noise: standard deviation of the guide's input noise, in units of the image's [0, 1].
        **kwargs: of :class:`CrossTeaching`.

    Raises:
        ValueError: for a decay outside [0, 1) or a negative noise.
    """

    def __init__(
        self,
        *,
        decay: float = 0.99,
        teaching: float = 7.0,
        guidance_start: float = 1 / 30,
        noise: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if noise < 0:
            raise ValueError(f"noise: expected a standard deviation of at least 0, found {noise}.")
        self.guide = MovingAverage(self.transformer, decay)
        self.teaching = teaching
        self.guidance_start = guidance_start
        self.noise = noise

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        views = self.weak_views(batch)
        target = self.guide_target(views.unlabeled)
        supervised, teaching, predictions = self.teach(views)
        guidance = torch.stack([F.mse_loss(p, target) for p in predictions]).sum()
        t = self.iteration / self.total_iterations
        consistency = self.teaching * teaching + float(t >= self.guidance_start) * guidance
        return {
            "loss": supervised + self.consistency_weight * t * consistency,
            "loss_supervised": supervised,
            "loss_consistency": teaching,
            "loss_guidance": guidance,
        }

    @torch.no_grad()
    def guide_target(self, image: Tensor) -> Tensor:
        """The guide's class probabilities ``[B, C, H, W]`` of images under one draw of the noise."""
        self.guide.eval()
        target: Tensor = self.guide(noisy(image, self.noise)).float().softmax(dim=1)
        return target

    def after_step(self) -> None:
        """Update the guide's average."""
        self.guide.update_parameters(self.transformer)
