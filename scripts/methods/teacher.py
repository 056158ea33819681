"""The exponential moving average of a network, which teaches it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["MovingAverage"]


class MovingAverage(nn.Module):
    """Moving average of a network's weights, the teacher of a mean teacher (Tarvainen and Valpola, NeurIPS 2017).

    Call :meth:`update_parameters` after each optimiser step: the first one copies the student, the others give
    ``theta' <- decay theta' + (1 - decay) theta``. Buffers, BatchNorm's averages among them, are the student's. It
    takes no gradient, so the optimiser leaves it alone; as a part of the objective it stands in the checkpoint.

    PyTorch's ``AveragedModel`` computes the same, bit for bit, but keeps the number of its updates as a tensor on the
    device and branches on it twice per update (``n_averaged == 0``, ``n_averaged > 0``): each time the host waits for
    the GPU.

    Args:
        student: the network that is averaged; it is copied as it is now.
        decay: in [0, 1).
        dropout: whether the average has its student's dropout.

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
        """Follow the student's weights, and copy its buffers."""
        if self._started:
            self._average(list(self.module.parameters()), list(student.parameters()), 1)
            for buffer, other in zip(self.module.buffers(), student.buffers(), strict=True):
                buffer.copy_(other)
        else:
            self.module.load_state_dict(student.state_dict())
        self._started = True

    def get_extra_state(self) -> dict[str, int]:
        """State beside the weights for a checkpoint."""
        return {"updates": int(self._started)}

    def set_extra_state(self, state: Any) -> None:
        """Resume from a checkpoint; one from before has the number of updates."""
        self._started = int(state["updates"]) > 0
