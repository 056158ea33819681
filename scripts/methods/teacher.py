"""Exponential moving average of a network: the teacher of a mean teacher."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["MovingAverage"]


class MovingAverage(nn.Module):
    """Moving average of a network's weights, the teacher of a mean teacher (Tarvainen and Valpola, NeurIPS 2017).

    Call :meth:`update_parameters` after each optimiser step: the first call copies the student, the others compute
    ``theta' <- decay theta' + (1 - decay) theta``. Buffers, including BatchNorm's running averages, are copied from the
    student. The average has no gradient, so the optimiser skips it; the checkpoint includes it as part of the
    objective.

    PyTorch's ``AveragedModel`` gives the same bits, but it stores its number of updates in a tensor and reads the
    value twice per update (``n_averaged == 0``, ``n_averaged > 0``); on a GPU each read makes the host wait. A test
    counts these reads: two per update there, none here.

    Args:
        student: the network that is averaged; the average starts as a copy.
        decay: in [0, 1).
        dropout: whether the average keeps the student's dropout.

    Raises:
        ValueError: for a decay outside [0, 1).
    """

    def __init__(self, student: nn.Module, decay: float = 0.99, dropout: bool = True) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay: expected a number in [0, 1), found {decay}.")
        self.module = deepcopy(student).requires_grad_(False)
        if not dropout:
            for module in self.module.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        self.decay = decay
        self._average = get_ema_multi_avg_fn(decay)
        self._started = False

    @property
    def started(self) -> bool:
        """Whether the student was copied."""
        return self._started

    def forward(self, image: Tensor) -> Tensor:
        """Prediction of the averaged network."""
        prediction: Tensor = self.module(image)
        return prediction

    @torch.no_grad()
    def update_parameters(self, student: nn.Module) -> None:
        """Average the student's weights and copy its buffers."""
        if self._started:
            self._average(list(self.module.parameters()), list(student.parameters()), 1)
            for buffer, other in zip(self.module.buffers(), student.buffers(), strict=True):
                buffer.copy_(other)
        else:
            self.module.load_state_dict(student.state_dict())
        self._started = True

    def get_extra_state(self) -> dict[str, int]:
        """Whether the student was copied, for a checkpoint."""
        return {"updates": int(self._started)}

    def set_extra_state(self, state: Any) -> None:
        """Restore it from a checkpoint; an older one holds the number of updates."""
        self._started = int(state["updates"]) > 0
