"""Shared parts of the phantoms: the slices' grid, soft edges, smooth random fields, a scanner's imaging model."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import interpolate

__all__ = ["PhantomVolume", "Range", "paint", "random_field", "scan"]

Range = tuple[float, float]


class PhantomVolume:
    """The grid of slices on which a patient's anatomy is drawn.

    Args:
        rng: source of all random numbers.
        thickness: smallest and largest distance of two slices in mm.
        size: smallest and largest number of pixels along an in-plane axis.
        spacing: smallest and largest pixel size in mm.
        slices: smallest and largest number of slices.

    Attributes:
        rng: as given; the order of the draws is the order of the code.
        shape: pixels along both axes in the plane, and slices.
        pixel: size of a pixel in mm.
        thickness: distance of two slices in mm.
        x: first coordinate of every pixel of a slice in mm, ``[X, Y]``; 0 in the middle.
        y: the second.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        thickness: Range,
        size: tuple[int, int],
        spacing: Range,
        slices: tuple[int, int],
    ) -> None:
        self.rng = rng
        self.shape = (*rng.integers(size[0], size[1] + 1, 2).tolist(), int(rng.integers(slices[0], slices[1] + 1)))
        self.pixel, self.thickness = rng.uniform(*spacing), rng.uniform(*thickness)
        grid = [(np.arange(n, dtype=np.float32) - (n - 1) / 2) * self.pixel for n in self.shape[:2]]
        self.x, self.y = np.meshgrid(*grid, indexing="ij")

    def field(self, waves: int) -> np.ndarray:
        """:func:`random_field` over a slice."""
        return random_field(self.rng, self.shape[:2], waves)


def paint(signal: np.ndarray, value: np.ndarray | float, distance: np.ndarray, edge: float) -> np.ndarray:
    """Paint a tissue over the signal where its signed distance is negative, with a soft edge of ``edge`` mm."""
    cover = np.clip(0.5 - distance / edge, 0, 1)
    return signal + cover * (value - signal)


def random_field(rng: np.random.Generator, shape: tuple[int, int], waves: int) -> np.ndarray:
    """Smooth random field of an image's shape, float32, about standard normal; more waves give a finer grain."""
    coarse = torch.from_numpy(rng.standard_normal((1, 1, waves + 2, waves + 2)).astype(np.float32))
    return interpolate(coarse, size=shape, mode="bicubic", align_corners=True)[0, 0].numpy()


def scan(rng: np.random.Generator, signal: np.ndarray, blur: float, noise: float, scale: float) -> np.ndarray:
    """Magnitude image of a signal: in-plane point spread, Rician noise, integers.

    Args:
        rng: source of the noise.
        signal: ``[X, Y, slices]``, 0 without signal, about 1 in bright tissue.
        blur: share of a pixel's value that comes from each of its two neighbours, per axis.
        noise: standard deviation of the noise, in units of the signal.
        scale: integer value of a signal of 1.

    Returns:
        int16 array of the same shape.
    """
    for axis in (0, 1):
        padded = np.pad(signal, [(1, 1) if i == axis else (0, 0) for i in range(3)], mode="edge")
        before, after = (np.take(padded, np.arange(signal.shape[axis]) + d, axis) for d in (0, 2))
        signal = (1 - 2 * blur) * signal + blur * (before + after)
    real, imaginary = rng.normal(0, noise, (2, *signal.shape))
    return np.round(scale * np.hypot(signal + real, imaginary)).astype(np.int16)
