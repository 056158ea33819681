"""Random numbers of a training step: drawn on the CPU, copied to the device at once, used in order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["Draws"]


class Draws:
    """Random numbers, used in order; every distribution is a function of uniform numbers.

    They are drawn on the CPU, so that a seed gives the same views on every device. All numbers of a step can be given
    as one tensor, which takes a single copy to the device; drawing them one call at a time from the same generator
    gives the same numbers, bit for bit.

    Args:
        device: device of the numbers.
        numbers: ``[N]`` float32 in [0, 1), on the device. None: each call draws its own.
        generator: CPU generator that draws if ``numbers`` is None; default PyTorch's global one.

    Attributes:
        taken: how many numbers have been used.
    """

    def __init__(
        self, device: torch.device, numbers: Tensor | None = None, generator: torch.Generator | None = None
    ) -> None:
        self.device = device
        self.numbers = numbers
        self.generator = generator
        self.taken = 0

    def rand(self, *size: int) -> Tensor:
        """Uniform numbers in [0, 1).

        Raises:
            IndexError: if too few are left in ``numbers``.
        """
        begin, self.taken = self.taken, self.taken + math.prod(size)
        if self.numbers is None:
            return torch.rand(size, generator=self.generator).to(self.device, non_blocking=True)
        if self.taken > self.numbers.numel():
            raise IndexError(f"a step takes {self.taken} random numbers or more, {self.numbers.numel()} were drawn.")
        return self.numbers[begin : self.taken].view(size)

    def uniform(self, low: float, high: float, *size: int) -> Tensor:
        """Uniform numbers in [low, high)."""
        return low + (high - low) * self.rand(*size)

    def log_uniform(self, low: float, high: float, *size: int) -> Tensor:
        """Numbers in [low, high) whose logarithms are uniform."""
        return self.uniform(math.log(low), math.log(high), *size).exp()

    def normal(self, *size: int) -> Tensor:
        """Standard normal numbers, at most 5.3 in size, as quantiles of uniform ones."""
        # the quantiles of 0 and 1 are infinite
        share = self.rand(*size).clamp(2**-24, 1 - 2**-24)
        return math.sqrt(2) * torch.erfinv(2 * share - 1)

    def coin(self, probability: float, batch: int) -> Tensor:
        """``[B, 1, 1, 1]`` booleans, one per image, true with the given probability."""
        return self.rand(batch, 1, 1, 1) < probability

    def below(self, end: int, *size: int) -> Tensor:
        """Whole numbers in [0, end), int64; ``end`` at most a few thousand."""
        return (self.rand(*size) * end).long()

    def order(self, length: int) -> Tensor:
        """The numbers from 0 to ``length - 1`` in random order, int64."""
        return self.rand(length).argsort()
