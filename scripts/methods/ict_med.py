"""ICT for medical images (Basak, Bhattacharya, Hussain and Chatterjee, ISBI 2022; code: hritam-98/ICT-MedSeg)."""

from __future__ import annotations

import torch
from torch import Tensor

from scripts.methods.interpolation_consistency import InterpolationConsistency

__all__ = ["ICTMed"]


class ICTMed(InterpolationConsistency):
    """``L_s + w(t) L_c``: ICT as the authors of "An embarrassingly simple consistency regularization" published it.

    Their code is SSL4MIS's ICT, with the same constants: the first half of the unlabeled batch is blended with the
    second, a lambda ~ Beta(.2, .2) for each pair, so the student sees half as many unlabeled images as under
    :class:`InterpolationConsistency`. Loss, teacher and weight are the same.

    Trained and deployed: as :class:`InterpolationConsistency`. Deviations: the teacher sees both halves in one pass
    (batch norm over all of them), not each in its own; in a batch of odd size the middle image belongs to both
    halves, so a single one is blended with itself. What is open: whether the paper's own text asks for more than its
    code does (it was not at hand), and what made the two ICT rows of the compared tables differ.
    """

    def pairs(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """The two halves of the batch, one lambda per pair."""
        first, second = torch.arange((batch + 1) // 2), torch.arange(batch // 2, batch)
        return first, second, self.mixing.sample((len(first),))
