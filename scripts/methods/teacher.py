"""The exponential moving average of a network, which teaches it."""

from __future__ import annotations

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["ema_teacher"]


def ema_teacher(student: nn.Module, decay: float = 0.99) -> AveragedModel:
    """A mean teacher (Tarvainen and Valpola, NeurIPS 2017) of a network.

    Call its ``update_parameters(student)`` after each optimiser step: the first one copies the student, the others
    give ``theta' <- decay theta' + (1 - decay) theta``. Buffers, BatchNorm's averages among them, are the student's.
    It takes no gradient, so the optimiser leaves it alone; as a part of the objective it stands in the checkpoint.

    Args:
        student: the network that is averaged; it is copied as it is now.
        decay: in [0, 1).

    Raises:
        ValueError: for a decay outside [0, 1).
    """
    if not 0 <= decay < 1:
        raise ValueError(f"decay: expected a number in [0, 1), found {decay}.")
    teacher = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(decay))
    teacher.requires_grad_(False)
    return teacher
