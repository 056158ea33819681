"""Weak and strong views of an image batch, computed batch-wise on the batch's device.

A view is a function of the image and of :class:`scripts.draws.Draws`. Without draws it takes its own from PyTorch's
global generator: seeding that fixes every view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.draws import Draws
from scripts.utils.options import check_switches

__all__ = ["MixedView", "StrongView", "WeakView"]


class WeakView(nn.Module):
    """Random flips and rotations, the same for an image and its label.

    Args:
        mode: ``flip``: both in-plane axes, each with probability .5. ``rotate_flip``: SSL4MIS's recipe, with
            probability .5 a quarter-turn multiple and one flip, else with probability .5 a rotation of at most
            20 degrees. ``none``: no change.
        shared: one draw for the whole batch instead of one per image (the same for labelled and unlabelled images), so
            that the regions of Eq. 8 stay aligned.

    Raises:
        ValueError: for another mode; in forward for images that are not square under ``rotate_flip``.
    """

    max_degrees = 20.0

    def __init__(self, mode: str = "flip", shared: bool = False) -> None:
        super().__init__()
        check_switches(shared=shared)
        if mode not in ("flip", "rotate_flip", "none"):
            raise ValueError(f"weak view mode: expected 'flip', 'rotate_flip' or 'none', found {mode!r}.")
        self.mode = mode
        self.shared = shared

    def forward(
        self, image: Tensor, label: Tensor | None = None, draws: Draws | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Views of ``[B, C, H, W]`` and of the optional label ``[B, 1, H, W]`` under the same draws."""
        if self.mode == "none":
            return image, label
        draws = draws or Draws(image.device)
        batch = 1 if self.shared else image.shape[0]
        if self.mode == "flip":
            return self._flip(image, label, draws.coin(0.5, batch), draws.coin(0.5, batch))
        with torch.autocast(image.device.type, enabled=False):  # a bfloat16 grid is off by up to a pixel
            return self._rotate_flip(image, label, batch, draws)

    def labeled(self, image: Tensor, label: Tensor, draws: Draws | None = None) -> tuple[Tensor, Tensor]:
        """The view of labelled images and of their labels, here the same as for unlabelled images."""
        return cast("tuple[Tensor, Tensor]", self(image, label, draws))

    @property
    def shared_numbers(self) -> int:
        """How many random numbers a shared view takes."""
        return {"none": 0, "flip": 2, "rotate_flip": 5}[self.mode]

    @staticmethod
    def _flip(image: Tensor, label: Tensor | None, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        def flip(x: Tensor) -> Tensor:
            x = torch.where(rows, x.flip(-2), x)
            return torch.where(columns, x.flip(-1), x)

        return flip(image), None if label is None else flip(label)

    def _rotate_flip(
        self, image: Tensor, label: Tensor | None, batch: int, draws: Draws
    ) -> tuple[Tensor, Tensor | None]:
        if image.shape[-1] != image.shape[-2]:
            raise ValueError(f"weak view 'rotate_flip': expected square images, found {tuple(image.shape[-2:])}.")
        turn, rotate = draws.coin(0.5, batch), draws.coin(0.5, batch)
        rotate = rotate & ~turn
        quarter = draws.below(4, batch, 1, 1, 1)
        by_rows = draws.coin(0.5, batch)
        angle = torch.deg2rad(draws.uniform(-self.max_degrees, self.max_degrees, batch))
        angle = torch.where(rotate.flatten(), angle, 0.0).expand(image.shape[0])
        zero = torch.zeros_like(angle)
        matrix = torch.stack(
            [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)], 1
        )

        def transform(x: Tensor, mode: str) -> Tensor:
            turned = x
            for k in (1, 2, 3):
                turned = torch.where(quarter == k, torch.rot90(x, k, (-2, -1)), turned)
            turned = torch.where(by_rows, turned.flip(-2), turned.flip(-1))
            grid = F.affine_grid(matrix.to(torch.float32), list(x.shape), align_corners=False)
            rotated = F.grid_sample(x.to(torch.float32), grid, mode=mode, align_corners=False).to(x.dtype)
            return torch.where(turn, turned, torch.where(rotate, rotated, x))

        return transform(image, "bilinear"), None if label is None else transform(label, "nearest")


@dataclass(frozen=True)
class MixedView:
    """A strong view with boxes pasted from other images of the batch (CutMix).

    Attributes:
        image: ``[B, C, H, W]``.
        box: ``[B, 1, H, W]`` boolean, true on the partner's pixels.
        partner: ``[B]`` index of the image that each box comes from.
    """

    image: Tensor
    box: Tensor
    partner: Tensor

    def paste(self, target: Tensor) -> Tensor:
        """Paste the partner's target (pseudo-label, confidence) into the box.

        Args:
            target: ``[B, h, w]`` of any size; box edges are multiples of 4, so h = H/4 is exact.
        """
        box = self.box
        if box.shape[-2:] != target.shape[-2:]:
            # Nearest, on an integer grid: exact in every dtype and on every device.
            rows = torch.arange(target.shape[-2], device=box.device) * box.shape[-2] // target.shape[-2]
            columns = torch.arange(target.shape[-1], device=box.device) * box.shape[-1] // target.shape[-1]
            box = box[:, :, rows][..., columns]
        return torch.where(box[:, 0], target[self.partner], target)


class StrongView(nn.Module):
    """Intensity jitter, Gaussian blur and CutMix between the images of the batch.

    In this order, each drawn per image: with probability ``jitter`` brightness and contrast factors in
    [1 - .5, 1 + .5] (RGB also saturation in [.5, 1.5] and a hue turn of at most .25 of the colour circle), with
    probability ``blur`` a Gaussian of sigma .1 to 2 px, with probability ``cutmix`` a box of area .02 to .4 of the
    image and aspect .3 to 1/.3, edges on multiples of 4 px, from another image of the batch.

    Args:
        jitter: probability of the intensity jitter.
        blur: probability of the blur.
        cutmix: probability of the box.
    """

    strength = 0.5
    hue = 0.25
    sigma = (0.1, 2.0)
    radius = 6  # three times the largest sigma
    area = (0.02, 0.4)
    aspect = (0.3, 1 / 0.3)
    cell = 4

    def __init__(self, jitter: float = 0.8, blur: float = 0.5, cutmix: float = 0.5) -> None:
        super().__init__()
        self.jitter = jitter
        self.blur = blur
        self.cutmix = cutmix
        self.register_buffer("to_yiq", _TO_YIQ, persistent=False)
        self.register_buffer("from_yiq", torch.linalg.inv(_TO_YIQ), persistent=False)

    def forward(self, image: Tensor, draws: Draws | None = None) -> MixedView:
        """One independent view of weak views ``[B, C, H, W]`` in [0, 1], grey (C = 1) or RGB (C = 3)."""
        draws = draws or Draws(image.device)
        with torch.autocast(image.device.type, enabled=False):  # mixed precision is for the network only
            image = self._blur(self._jitter(image, draws), draws)
        box, partner = self._boxes(image, draws)
        return MixedView(torch.where(box, image[partner], image), box, partner)

    def _jitter(self, image: Tensor, draws: Draws) -> Tensor:
        batch, channels = image.shape[:2]
        apply = draws.coin(self.jitter, batch)
        low, high = 1 - self.strength, 1 + self.strength
        brightness = draws.uniform(low, high, batch, 1, 1, 1)
        contrast = draws.uniform(low, high, batch, 1, 1, 1)
        x = (image * brightness).clamp(0, 1)
        grey = _luma(x).mean(dim=(1, 2, 3), keepdim=True)
        x = (grey + (x - grey) * contrast).clamp(0, 1)
        if channels == 3:
            saturation = draws.uniform(low, high, batch, 1, 1, 1)
            turn = draws.uniform(-self.hue, self.hue, batch)
            grey = _luma(x)
            x = self._rotate_hue((grey + (x - grey) * saturation).clamp(0, 1), turn).clamp(0, 1)
        return torch.where(apply, x, image)

    def _rotate_hue(self, image: Tensor, turn: Tensor) -> Tensor:
        """Rotate the chroma plane of YIQ by ``turn`` of a full circle, per image: linear, without conversion to HSV."""
        angle = 2 * math.pi * turn
        cos, sin, one, zero = angle.cos(), angle.sin(), torch.ones_like(angle), torch.zeros_like(angle)
        rotation = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
        # A view that stands alone is on the CPU; as a part of an objective it is where the images are.
        to_yiq, from_yiq = (
            cast(Tensor, matrix).to(image.device, non_blocking=True) for matrix in (self.to_yiq, self.from_yiq)
        )
        matrix = (from_yiq @ rotation @ to_yiq).to(image.dtype)
        return torch.einsum("bij,bjhw->bihw", matrix, image)

    def _blur(self, image: Tensor, draws: Draws) -> Tensor:
        batch, channels, height, width = image.shape
        apply = draws.coin(self.blur, batch)
        sigma = draws.uniform(*self.sigma, batch, 1)
        radius = min(self.radius, height - 1, width - 1)
        offsets = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
        kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
        kernel = (kernel / kernel.sum(dim=1, keepdim=True)).to(image.dtype).repeat_interleave(channels, dim=0)
        x = image.reshape(1, batch * channels, height, width)
        x = F.pad(x, (radius,) * 4, mode="reflect")
        x = F.conv2d(x, kernel[:, None, :, None], groups=batch * channels)
        x = F.conv2d(x, kernel[:, None, None, :], groups=batch * channels)
        return torch.where(apply, x.view_as(image), image)

    def _boxes(self, image: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        batch, _, height, width = image.shape
        device = image.device
        apply = draws.coin(self.cutmix, batch)
        area = draws.uniform(*self.area, batch) * height * width
        aspect = draws.log_uniform(*self.aspect, batch)
        place = draws.rand(2, batch)

        def span(length: Tensor, size: int, position: Tensor) -> tuple[Tensor, Tensor]:
            cells = size // self.cell
            extent = (length / self.cell).round().clamp(1, cells)
            start = (position * (cells - extent + 1)).floor()
            return start * self.cell, (start + extent) * self.cell

        top, bottom = span((area * aspect).sqrt(), height, place[0])
        left, right = span((area / aspect).sqrt(), width, place[1])
        rows = torch.arange(height, device=device)[None, :]
        columns = torch.arange(width, device=device)[None, :]
        inside_rows = (rows >= top[:, None]) & (rows < bottom[:, None])
        inside_columns = (columns >= left[:, None]) & (columns < right[:, None])
        box = inside_rows[:, None, :, None] & inside_columns[:, None, None, :] & apply
        # A cyclic shift of a random order: no image is its own partner, unless the batch has one image.
        order = draws.order(batch)
        return box, torch.empty_like(order).scatter(0, order, order.roll(1))


def _luma(image: Tensor) -> Tensor:
    """Grey value ``[B, 1, H, W]``: ITU-R BT.601 luma of RGB, or the one channel itself."""
    if image.shape[1] != 3:
        return image
    red, green, blue = image.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
