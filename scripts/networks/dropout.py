"""Dropout of single values, on a CPU with one random byte per value."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

__all__ = ["Dropout", "dropout"]


class Dropout(nn.Dropout):
    """PyTorch's dropout of single values, computed by :func:`dropout`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Dropout's name
        """The values with some of them 0, in evaluation mode the values as they are."""
        if torch.jit.is_scripting() or not self.training:  # TorchScript does not know words of bytes
            return F.dropout(input, self.p, self.training)
        else:
            return dropout(input, self.p)


def dropout(x: Tensor, rate: float) -> Tensor:
    """Each value 0 with a probability, all others divided by the share that stays.

    PyTorch draws a random number of 32 bits and a Bernoulli variable of it for each value, one after another: on a CPU
    that takes several times as long as a convolution's activation. Here a word of 64 bits decides on eight values. The
    probability is therefore a multiple of 1/256, the one nearest to ``rate``, and the share that stays is exactly
    what is divided by, so that the expectation is the value itself.

    Args:
        x: any shape and floating dtype.
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
