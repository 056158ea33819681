"""Post-processing of a trained network's predictions: mirrored averaging, largest components."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.inferers import SliceInferer
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from scipy import ndimage
from torch import Tensor

from scripts.utils.options import check_switches

__all__ = ["LargestComponentd", "MirroredSliceInferer"]


class MirroredSliceInferer(SliceInferer):
    """MONAI's ``SliceInferer`` with optional averaging over the slices and their mirror images along both axes.

    Args:
        mirroring: whether to average, at four times the cost. The result is then the logarithm of the mean
            class probabilities, which serves as logits.
        **kwargs: of ``SliceInferer``.
    """

    def __init__(self, mirroring: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_switches(mirroring=mirroring)
        self.mirroring = mirroring

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Logits ``[B, C', H, W, slices]`` of volumes ``[B, C, H, W, slices]``."""
        logits: Any = super().__call__(inputs, network, *args, **kwargs)
        if not self.mirroring:
            return logits
        mean = logits.float().softmax(dim=1)
        for axes in ((2,), (3,), (2, 3)):
            mirrored: Any = super().__call__(inputs.flip(axes), network, *args, **kwargs)
            mean = mean + mirrored.float().softmax(dim=1).flip(axes)
        return (mean / 4).clamp_min(torch.finfo(mean.dtype).tiny).log()


class LargestComponentd(MapTransform):
    """Keep the largest connected component of each foreground class; the rest becomes background.

    MONAI's ``KeepLargestConnectedComponentd`` needs scikit-image for the same.

    Args:
        keys: keys of label maps ``[1, ...]``; components connect along all spatial dimensions and across corners.
    """

    def __init__(self, keys: KeysCollection) -> None:
        super().__init__(keys)

    def __call__(self, data: Mapping[Hashable, Tensor]) -> dict[Hashable, Tensor]:
        """Apply to the label maps of the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            label = np.asarray(d[key][0].cpu())
            kept = np.zeros_like(label)
            for number in np.unique(label[label > 0]):
                components, _ = ndimage.label(label == number, np.ones((3,) * label.ndim))
                sizes = np.bincount(components.ravel())
                sizes[0] = 0
                kept[components == sizes.argmax()] = number
            d[key] = convert_to_dst_type(kept[None], d[key])[0]
        return d
