"""Measurement of a computation's memory for the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from scripts.networks import attention

INSIDE = {
    torch.ops.semsim.attention.default: attention._values,
    torch.ops.semsim.attention_backward.default: attention._gradients,
}
"""What the bundle's own operators do, which PyTorch does not let a mode look into."""


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in INSIDE:
            with self:
                return INSIDE[func](*args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out
