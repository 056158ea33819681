"""Images as from another scanner, another protocol or an export error, with their labels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from monai.transforms import GaussianSmooth
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["SHIFTS"]

Pair = tuple[Tensor, Tensor]


def noise(image: Tensor, label: Tensor, generator: torch.Generator) -> Pair:
    """Gaussian noise, its standard deviation 15 % of the range up to the 99th percentile."""
    low, high = np.quantile(image.numpy(), [0, 0.99])
    return image + 0.15 * float(high - low) * torch.randn(image.shape, generator=generator), label


def blur(image: Tensor, label: Tensor, generator: torch.Generator) -> Pair:
    """Gaussian blur in the slices, sigma 4 pixels."""
    del generator
    smooth = GaussianSmooth(4.0)
    return torch.stack([smooth(image[..., k]) for k in range(image.shape[-1])], dim=-1), label


def inversion(image: Tensor, label: Tensor, generator: torch.Generator) -> Pair:
    """Inverted contrast."""
    del generator
    return image.max() + image.min() - image, label


def zoomed_out(image: Tensor, label: Tensor, generator: torch.Generator) -> Pair:
    """Twice the field of view, padded with the image's lowest value."""
    del generator
    height, width = image.shape[1:3]
    margins = (0, 0, width // 2, width // 2, height // 2, height // 2)
    return F.pad(image, margins, value=float(image.min())), F.pad(label, margins)


def zoomed_in(image: Tensor, label: Tensor, generator: torch.Generator) -> Pair:
    """The middle three fifths of the field of view."""
    del generator
    height, width = image.shape[1:3]
    window = (slice(None), slice(height // 5, height - height // 5), slice(width // 5, width - width // 5))
    return image[window], label[window]


def orientation(image: Tensor, label: Tensor, generator: torch.Generator) -> Pair:
    """A dozen slices along the wrong axis, from the middle; a single slice is rotated by 90 degrees."""
    del generator
    if image.shape[-1] == 1:
        return image.rot90(1, (1, 2)), label.rot90(1, (1, 2))
    width = image.shape[2]
    chosen = torch.linspace(width / 4, 3 * width / 4, 12).long()
    return image[:, :, chosen].permute(0, 1, 3, 2), label[:, :, chosen].permute(0, 1, 3, 2)


def motion(image: Tensor, label: Tensor, generator: torch.Generator) -> Pair:
    """Motion ghosts: a third of the lines of each slice's k-space with the patient displaced by up to 12 pixels."""
    spectrum = torch.fft.fft2(image, dim=(1, 2))
    height, width = image.shape[1:3]
    moved = torch.rand(width, generator=generator) < 1 / 3
    moved[0] = False  # keeps the mean intensity
    away = 12 * (2 * torch.rand(width, generator=generator) - 1) * moved
    turns = torch.fft.fftfreq(width)[None, :] * away + torch.fft.fftfreq(height)[:, None] * away / 2
    phase = torch.exp(-2j * np.pi * turns)[None, :, :, None]
    return torch.fft.ifft2(spectrum * phase, dim=(1, 2)).real, label


SHIFTS: dict[str, Callable[[Tensor, Tensor, torch.Generator], Pair]] = {
    "clean": lambda image, label, _: (image, label),
    "noise": noise,
    "blur": blur,
    "inversion": inversion,
    "zoomed_out": zoomed_out,
    "zoomed_in": zoomed_in,
    "orientation": orientation,
    "motion": motion,
}
"""The shifts by name: functions of an image ``[C, H, W, slices]`` and its label ``[1, H, W, slices]``."""
