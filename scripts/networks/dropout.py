"""Element-wise dropout that draws one random byte per value on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["Dropout", "dropout"]


class Dropout(nn.Dropout):
    """PyTorch's element-wise dropout, computed by :func:`dropout`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Dropout's name
        """Dropout in training mode, the input unchanged in evaluation mode."""
        if torch.jit.is_scripting() or not self.training:  # TorchScript cannot view integers as bytes
            return F.dropout(input, self.p, self.training)
        else:
            return dropout(input, self.p)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Set each value to 0 with a probability and scale the others so that the expectation stays.

    PyTorch draws a Bernoulli variable from a 32-bit random number for one value after another, which takes a CPU
    several times as long as an activation function. Here one 64-bit random number decides on eight values. The
    probability is therefore rounded to a multiple of 1/256, and the scale follows the rounded one.

    Args:
        x: values of any shape and floating dtype.
        rate: the probability, in [0, 1].
    """
    limit = round(256 * rate)
    if x.device.type != "cpu" or not 0 < limit < 256:
        return F.dropout(x, rate)
    words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 8),))
    bytes_ = words.view(torch.uint8)[: x.numel()]
    # Compared into bytes, not booleans: only that is vectorised.
    kept = torch.ge(bytes_, limit, out=torch.empty_like(bytes_)).to(x.dtype).mul_(256 / (256 - limit))
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        batch, channels, height, width = x.shape
        return x * kept.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return x * kept.view(x.shape)
