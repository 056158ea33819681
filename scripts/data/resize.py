"""Mapping of slices to the network's grid: resized to a square, or at one pixel size in a window at the centre."""

from __future__ import annotations

import numbers
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.transforms import Resized
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple_rep
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["FitSlicesd", "ResizeSlicesd"]

NEAREST = "nearest-exact"


class ResizeSlicesd(Resized):
    """MONAI's ``Resized`` for stacks of slices, with fast anti-aliasing.

    MONAI first smooths the whole image with a 3-D Gaussian, which takes tens of seconds and over 10 GB for a photograph
    of 6 megapixels. Here ``torch.nn.functional.interpolate`` with ``antialias``, a triangular filter as wide as a pixel
    of the result, takes tenths of a second. Without anti-aliasing, and for the inverse, which enlarges, it is
    ``Resized`` itself.

    Args:
        keys: keys of images ``[C, H, W, slices]``.
        spatial_size: ``(height, width, -1)`` of the result.
        mode: interpolation, one for all keys or one for each.
        anti_aliasing: likewise, whether to filter (bilinearly) if the result is smaller.
        allow_missing_keys: whether a key may be absent.
    """

    def __init__(
        self,
        keys: KeysCollection,
        spatial_size: Sequence[int],
        mode: Sequence[str] | str,
        anti_aliasing: Sequence[bool] | bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, spatial_size, mode=mode, allow_missing_keys=allow_missing_keys)
        self.filtered = ensure_tuple_rep(anti_aliasing, len(self.keys))

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        """Resize the images of the dictionary; ``lazy`` as in ``Resized``, only without anti-aliasing."""
        result = super().__call__(data, lazy)
        for key, filtered in self.key_iterator(result, self.filtered):
            if filtered:
                slices = convert_to_tensor(data[key], dtype=torch.float32).movedim(-1, 0)
                smooth = F.interpolate(slices, list(result[key].shape[1:3]), mode="bilinear", antialias=True)
                # the plain result already has the metadata and the trace for the inverse
                result[key] = convert_to_dst_type(smooth.movedim(0, -1).contiguous(), result[key])[0]
        return result


class FitSlicesd(ResizeSlicesd):
    """Map slices to the network's square grid, and predictions back to the image's own.

    The paper resizes every slice to a square (``pixel_spacing`` None, :class:`ResizeSlicesd`): the scale and aspect
    ratio of a heart then depend on the field of view. With ``pixel_spacing`` all pixels have the same size, and the
    square is a window at the slice's centre, with 0 outside the slice. In the inverse, the slice outside the window is
    background.

    Args:
        keys: keys of images ``[C, H, W, slices]``.
        image_size: side of the square in pixels.
        pixel_spacing: None: resize to the square. A number: size of a pixel in mm, by the image's affine. ``aspect``:
            the longer side fills the square, for photographs and unknown spacings.
        mode: ``trilinear`` or ``nearest-exact``, one for all keys or one for each.
        anti_aliasing: likewise, whether resizing to the square filters; with ``pixel_spacing`` images are always
            filtered, labels never.
        allow_missing_keys: whether a key may be absent.

    Raises:
        ValueError: for another ``pixel_spacing``.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_size: int,
        pixel_spacing: float | str | None = None,
        mode: Sequence[str] | str = "trilinear",
        anti_aliasing: Sequence[bool] | bool = False,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, (image_size, image_size, -1), mode, anti_aliasing, allow_missing_keys)
        number = isinstance(pixel_spacing, numbers.Real) and not isinstance(pixel_spacing, bool) and pixel_spacing > 0
        if not (pixel_spacing is None or pixel_spacing == "aspect" or number):
            raise ValueError(f"pixel_spacing: expected None, mm or 'aspect', found {pixel_spacing!r}.")
        self.image_size = image_size
        self.pixel_spacing = pixel_spacing
        self.modes = ensure_tuple_rep(mode, len(self.keys))

    def __call__(self, data: Mapping[Hashable, Tensor], lazy: bool | None = None) -> dict[Hashable, Tensor]:
        """Fit the images of the dictionary; ``lazy`` as in ``Resized``, only without ``pixel_spacing``."""
        if self.pixel_spacing is None:
            return super().__call__(data, lazy)
        d = dict(data)
        for key, mode in self.key_iterator(d, self.modes):
            image: Any = d[key] if isinstance(d[key], MetaTensor) else MetaTensor(d[key])
            before, size = tuple(image.shape[1:3]), self._size(image)
            start = [(length - self.image_size) // 2 for length in size]
            resized = _interpolate(image.float(), size, mode, antialias=mode != NEAREST)
            fitted = _window(resized, start, (self.image_size, self.image_size), torch.zeros(len(image)))
            matrix = torch.eye(image.ndim, dtype=torch.float64)
            for axis in range(2):
                zoom = before[axis] / size[axis]
                matrix[axis, axis] = zoom
                matrix[axis, -1] = (start[axis] + 0.5) * zoom - 0.5
            info = {"size": size, "mode": "nearest" if mode == NEAREST else "bilinear"}
            d[key] = self.push_transform(fitted, affine=matrix, orig_size=before, extra_info=info)
        return d

    def inverse(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Map fitted images, or predictions on their grid, ``[C', S, S, slices]``, back to the original grid."""
        if self.pixel_spacing is None:
            squeezed: dict[Hashable, Tensor] = super().inverse(data)
            return squeezed
        d = dict(data)
        for key in self.key_iterator(d):
            image: Any = d[key]
            trace = self.pop_transform(image)
            before, size = tuple(trace["orig_size"]), list(trace["extra_info"]["size"])
            start = [-((length - self.image_size) // 2) for length in size]
            # For logits and probabilities alike: the extremes make the outside certain background.
            outside = torch.full((len(image),), float(image.min()) if len(image) > 1 else 0.0)
            outside[0] = float(image.max()) if len(image) > 1 else 0.0
            canvas = _window(image, start, size, outside)
            mode = NEAREST if trace["extra_info"]["mode"] == "nearest" else "bilinear"
            back: Any = _interpolate(canvas.float(), before, mode, antialias=False)
            matrix = torch.eye(image.ndim, dtype=torch.float64)
            for axis in range(2):
                zoom = size[axis] / before[axis]
                matrix[axis, axis] = zoom
                matrix[axis, -1] = start[axis] + 0.5 * zoom - 0.5
            back.affine = image.affine @ to_affine_nd(len(image.affine) - 1, matrix)
            d[key] = back
        return d

    def _size(self, image: MetaTensor) -> list[int]:
        """Height and width of the whole slice at the pixel size of the result."""
        height, width = image.shape[1:3]
        if self.pixel_spacing == "aspect":
            zoom = self.image_size / max(height, width)
            return [max(1, round(height * zoom)), max(1, round(width * zoom))]
        spacing = affine_to_spacing(image.affine, r=image.ndim - 1, dtype=np.float64).tolist()
        return [max(1, round(n * s / self.pixel_spacing)) for n, s in ((height, spacing[0]), (width, spacing[1]))]


def _interpolate(image: Tensor, size: Sequence[int], mode: str, antialias: bool) -> Tensor:
    """Slices ``[C, H, W, slices]`` at another size."""
    mode = mode if mode == NEAREST else "bilinear"
    resized = F.interpolate(image.movedim(-1, 0), list(size), mode=mode, antialias=antialias)
    return resized.movedim(0, -1).contiguous()


def _window(image: Tensor, start: Sequence[int], size: Sequence[int], outside: Tensor) -> Tensor:
    """The window of ``[C, H, W, slices]`` that starts at ``start``, with ``outside`` (per channel) beyond the image."""
    inside = [slice(max(0, s), min(n, s + length)) for s, length, n in zip(start, size, image.shape[1:3], strict=True)]
    there = [slice(part.start - s, part.stop - s) for part, s in zip(inside, start, strict=True)]
    window = outside.to(image)[:, None, None, None].expand(-1, *size, image.shape[-1]).clone()
    window[:, there[0], there[1]] = image[:, inside[0], inside[1]]
    return window.copy_meta_from(image) if isinstance(window, MetaTensor) else window
