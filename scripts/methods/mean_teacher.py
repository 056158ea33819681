"""Mean teacher (Tarvainen and Valpola, NeurIPS 2017), as SSL4MIS trains it for segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.methods.consistency import TaughtConsistency, joint_pass
from scripts.methods.perturbations import noisy

__all__ = ["MeanTeacher"]


class MeanTeacher(TaughtConsistency):
    """``L_s + w(t) L_c``: the student agrees with its moving average on a noisy copy of the unlabelled image.

    ``L_c = mean (p_student(x) - p_teacher(x + noise))^2`` over the unlabelled pixels and classes, with normal noise
    truncated at two standard deviations; the teacher has no gradient.

    Trained: the network's 1,813,764 parameters (1 channel, 4 classes); as many again are averaged, not trained.
    Deployed: the student. Deviations from SSL4MIS: it omits L_c in the first 1,000 of 30,000 iterations, where w(t) is
    below .0010; for the average's first steps see :class:`TaughtConsistency`.

    Args:
        noise: standard deviation of the teacher's input noise, in units of the image's [0, 1].
        **kwargs: of :class:`TaughtConsistency`.

    Raises:
        ValueError: for a negative noise.
    """

    capturable = True

    def __init__(self, *, noise: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if noise < 0:
            raise ValueError(f"noise: expected a standard deviation of at least 0, found {noise}.")
        self.noise = noise

    def teach(self, image: Tensor) -> Tensor:
        """The teacher's class probabilities ``[B, C, H, W]`` of the images under one draw of the noise."""
        return super().teach(noisy(image, self.noise))

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Named losses of one batch."""
        image, label, unlabeled, _ = self.weak_views(batch)
        target = self.teach(unlabeled)
        logits, unlabeled_logits = joint_pass(self.network, image, unlabeled)
        consistency = F.mse_loss(unlabeled_logits.softmax(dim=1), target)
        return self.total(self.supervised_loss(logits, label), consistency)
