"""Strong augmentation of labelled images, batch-wise on the batch's device.

A few labelled cases cover few sizes, positions and contrasts; other patients and scanners differ in all of these. The
ranges follow nnU-Net's (Isensee et al., Nature Methods 2021), with any rotation.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.draws import Draws
from scripts.views import WeakView

__all__ = ["AugmentedView"]


class AugmentedView(WeakView):
    """Spatial augmentation of every image, and intensity augmentation of the labelled ones.

    It replaces :class:`scripts.views.WeakView`. Unlabelled images get the spatial part only, so that pseudo-labels come
    from unaltered intensities; the strong view varies those.

    Spatial, each drawn per image: a flip, a rotation by any angle up to ``degrees``, a scale, a stretch of one axis
    against the other, a shift and a smooth elastic deformation, in one resampling; pixels from outside the image are 0,
    background. Intensity, each with probability ``intensity``: gamma, contrast, brightness, a smooth multiplicative
    bias field, half the resolution, Gaussian noise; on RGB also the balance of the channels. Values stay in [0, 1].

    Args:
        degrees: largest rotation.
        scale: smallest and largest size of an object relative to its own.
        stretch: largest ratio of one axis's scale to the other's.
        shift: largest shift as a share of the image's side.
        elastic: standard deviation of the control points of the deformation, as a share of the side; they lie on a
            coarse grid of 5 x 5.
        spatial: probability of the spatial augmentation beyond the flip.
        intensity: probability of each intensity augmentation.
        gamma: smallest and largest exponent.
        contrast: smallest and largest factor of the distances from the mean.
        brightness: largest shift of the values.
        bias: standard deviation of the logarithm of the bias field at its control points, a grid of 4 x 4.
        noise: largest standard deviation of the noise.

    Raises:
        ValueError: for an invalid range.
    """

    def __init__(
        self,
        degrees: float = 180.0,
        scale: tuple[float, float] = (0.7, 1.4),
        stretch: float = 1.2,
        shift: float = 0.1,
        elastic: float = 0.02,
        spatial: float = 0.9,
        intensity: float = 0.4,
        gamma: tuple[float, float] = (0.6, 1.6),
        contrast: tuple[float, float] = (0.65, 1.5),
        brightness: float = 0.15,
        bias: float = 0.3,
        noise: float = 0.1,
    ) -> None:
        super().__init__()
        for name, (low, high) in {"scale": scale, "gamma": gamma, "contrast": contrast}.items():
            if not 0 < low <= high:
                raise ValueError(f"{name}: expected a smallest and a largest positive factor, found {low}, {high}.")
        self.mode = "augmentation"
        self.degrees = degrees
        self.scale = (scale[0], scale[1])
        self.stretch = stretch
        self.shift = shift
        self.elastic = elastic
        self.spatial = spatial
        self.intensity = intensity
        self.gamma = (gamma[0], gamma[1])
        self.contrast = (contrast[0], contrast[1])
        self.brightness = brightness
        self.bias = bias
        self.noise = noise

    def forward(
        self, image: Tensor, label: Tensor | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Spatial views of ``[B, C, H, W]`` and of a label ``[B, 1, H, W]`` under the same draws."""
        with torch.autocast(image.device.type, enabled=False):  # a bfloat16 grid is off by up to a pixel
            grid = self.grid(image, draws or Draws(image.device))
            view = F.grid_sample(image.float(), grid, mode="bilinear", align_corners=False)
            if label is None:
                return view, None
            turned = F.grid_sample(label.float(), grid, mode="nearest", align_corners=False)
        return view, turned.to(label.dtype)

    def labeled(self, image: Tensor, label: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """Views of labelled images, spatial and in intensity, and of the labels."""
        draws = draws or Draws(image.device)
        view, turned = cast("tuple[Tensor, Tensor]", self(image, label, draws))
        with torch.autocast(image.device.type, enabled=False):
            return self.vary_intensity(view, draws), turned

    def grid(self, image: Tensor, draws: Draws) -> Tensor:
        """Source position of each pixel of the view: ``[B, H, W, 2]``, x and y in [-1, 1] as for ``grid_sample``."""
        batch, _, height, width = image.shape
        apply = draws.coin(self.spatial, batch).flatten()

        def drawn(values: Tensor, neutral: float) -> Tensor:
            return torch.where(apply, values, neutral)

        angle = drawn(draws.uniform(-1, 1, batch) * math.radians(self.degrees), 0.0)
        size = drawn(draws.log_uniform(*self.scale, batch), 1.0)
        stretch = drawn(draws.log_uniform(self.stretch**-0.5, self.stretch**0.5, batch), 1.0)
        shift = torch.where(apply[:, None], draws.uniform(-2, 2, batch, 2) * self.shift, 0.0)
        flip = torch.where(draws.coin(0.5, batch).flatten(), -1.0, 1.0)
        # The grid is the inverse of the object's transformation. The rotation is in pixels, so that images that are not
        # square are not distorted.
        x, y = 1 / (size * stretch), stretch / size
        cos, sin, ratio = angle.cos(), angle.sin(), height / width
        rows = [
            torch.stack([flip * x * cos, -flip * x * sin * ratio, shift[:, 0]], 1),
            torch.stack([y * sin / ratio, y * cos, shift[:, 1]], 1),
        ]
        grid = F.affine_grid(torch.stack(rows, 1), [batch, 1, height, width], align_corners=False)
        points = draws.normal(batch, 2, 5, 5) * 2 * self.elastic
        field = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
        return grid + torch.where(apply[:, None, None, None], field.movedim(1, -1), 0.0)

    def vary_intensity(self, image: Tensor, draws: Draws) -> Tensor:
        """Intensity augmentation of ``[B, C, H, W]`` in [0, 1]."""
        batch, channels, height, width = image.shape
        one = (batch, 1, 1, 1)

        def either(varied: Tensor, x: Tensor) -> Tensor:
            return torch.where(draws.coin(self.intensity, batch), varied, x)

        points = draws.normal(batch, 1, 4, 4) * self.bias
        field = F.interpolate(points, size=(height, width), mode="bicubic", align_corners=True)
        x = either((image * field.exp()).clamp(0, 1), image)
        # a minimum above 0 keeps the slope of small exponents finite
        x = either(x.clamp_min(1e-6) ** draws.log_uniform(*self.gamma, *one), x)
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = either(mean + (x - mean) * draws.log_uniform(*self.contrast, *one), x)
        x = either(x + draws.uniform(-1, 1, *one) * self.brightness, x)
        if channels > 1:
            x = either(x * draws.uniform(0.85, 1.15, batch, channels, 1, 1), x)
        coarse = F.interpolate(F.avg_pool2d(x, 2, ceil_mode=True), size=(height, width), mode="bilinear")
        x = either(coarse, x)
        deviation = draws.uniform(0, 1, *one) * self.noise
        x = either(x + draws.normal(*image.shape) * deviation, x)
        return x.clamp(0, 1)
