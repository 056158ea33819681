"""Resizing of slices that is affordable on photographs."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch
from monai.config import KeysCollection
from monai.transforms import Resized
from monai.utils import convert_to_dst_type, convert_to_tensor, ensure_tuple_rep
from torch.nn import functional as F  # noqa: N812

__all__ = ["ResizeSlicesd"]


class ResizeSlicesd(Resized):
    """MONAI's ``Resized`` for stacks of slices, whose anti-aliasing filters while it samples.

    MONAI smooths the whole image with a 3-D Gaussian first, which takes tens of seconds and over 10 GB for a
    photograph of 6 megapixels. Here a triangle as wide as a pixel of the result weighs the pixels below it
    (``torch.nn.functional.interpolate`` with ``antialias``): tenths of a second. Without anti-aliasing, and for the
    inverse, which enlarges, it is ``Resized`` itself.

    Args:
        keys: keys of images ``[C, H, W, slices]``.
        spatial_size: ``(height, width, -1)`` of the result.
        mode: interpolation, one for all keys or one for each.
        anti_aliasing: likewise, whether to filter (bilinearly) where the result is smaller.
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
        """Resize the images of the dictionary; ``lazy`` as in ``Resized``, without anti-aliasing only."""
        result = super().__call__(data, lazy)
        for key, filtered in self.key_iterator(result, self.filtered):
            if filtered:
                slices = convert_to_tensor(data[key], dtype=torch.float32).movedim(-1, 0)
                smooth = F.interpolate(slices, list(result[key].shape[1:3]), mode="bilinear", antialias=True)
                # the plain result has the metadata and the trace for the inverse already
                result[key] = convert_to_dst_type(smooth.movedim(0, -1).contiguous(), result[key])[0]
        return result
