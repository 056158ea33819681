"""Transforms that MONAI lacks."""

from __future__ import annotations

import logging
import numbers
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import Invertd, InvertibleTransform, MapTransform, ScaleIntensityRangePercentiles

from scripts.data.axis import THICK, THICKEST, check_axis, slice_index

__all__ = ["InvertToLabelGridd", "LabelValuesd", "ScaleImaged", "ThroughPlaneLastd"]

logger = logging.getLogger(__name__)

ROUNDING = 1e-3  # tolerance of a label's stored value


class LabelValuesd(MapTransform):
    """Map the values of a label file, such as a mask's 0 and 255, to classes.

    Stored values may be slightly off, such as 1.0000001 from a program that stores scaled numbers.

    MONAI's ``MapLabelValued`` keeps unknown values, so a faulty mask would train a faulty class. A label with only the
    classes' own numbers is accepted, because viewers write such labels to a MONAI Label server. It is refused if a
    class's number is the stored value of another class, like 2 in [0, 2, 3], because it would be ambiguous.

    Args:
        keys: keys of label maps of any shape.
        values: the stored values in the order of the classes; None: files store the classes.
        allow_missing_keys: whether a key may be absent.

    Raises:
        ValueError: if ``values`` is not a list of different numbers.
    """

    def __init__(self, keys: KeysCollection, values: Sequence[float] | None, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.values: list[float] | None = None
        if values is None:
            return
        numeric = isinstance(values, Sequence) and all(isinstance(value, numbers.Real) for value in values)
        if not numeric or len(set(values)) < len(values):
            raise ValueError(f"label_values: expected a list of different numbers, one per class, found {values!r}.")
        self.values = list(values)
        self.ambiguous = any(number != values.index(number) for number in range(len(values)) if number in values)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Map every label of the dictionary.

        Raises:
            ValueError: for a value of no class.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            label = d[key]
            if self.values is None:
                whole = label.round()
                d[key] = torch.where((label - whole).abs() <= ROUNDING, whole, label)
                continue
            classes = torch.full_like(label, -1, dtype=torch.float32)
            for number, value in enumerate(self.values):
                classes[(label - value).abs() <= ROUNDING] = number
            strange = label[classes < 0]
            own = torch.arange(len(self.values), dtype=label.dtype)
            if strange.numel() and not self.ambiguous and torch.isin(label, own).all():
                classes = label.float()
            elif strange.numel():
                found = ", ".join(f"{v:.9g}" for v in torch.unique(strange).tolist()[:5])
                file = label.meta.get("filename_or_obj") if isinstance(label, MetaTensor) else None
                what = f"label values must be {', '.join(map(str, self.values))}, found {found}."
                raise ValueError(f"{file}: {what}" if file else what)
            d[key] = classes
        return d


class ScaleImaged(MapTransform):
    """Scale the values of an image to [0, 1], from one percentile to another, and clip the rest.

    Each channel of a volume is scaled separately, because channels have different units; a diffusion map would have no
    contrast next to a weighted image. The colours of a photograph are scaled together by their minimum and maximum, and
    each by itself where percentiles clip: the brightest part of an image then is white whatever lit it, the white patch
    of colour constancy (Land and McCann, 1971).

    Args:
        keys: keys of channel-first images.
        percentiles: the percentiles that become 0 and 1; 0 and 100 are the minimum and the maximum.
    """

    def __init__(self, keys: KeysCollection, percentiles: Sequence[float] = (0, 100)) -> None:
        super().__init__(keys)
        lower, upper = percentiles
        self.each, self.together = (
            ScaleIntensityRangePercentiles(lower, upper, 0.0, 1.0, clip=True, channel_wise=each)
            for each in (True, False)
        )
        if (lower, upper) != (0, 100):
            self.together = self.each

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Scale every image of the dictionary; one without metadata is treated as a volume."""
        d = dict(data)
        for key in self.key_iterator(d):
            photograph = isinstance(d[key], MetaTensor) and d[key].meta.get("photograph", False)
            # images from other sources than files, such as MONAI Deploy, may be integers
            d[key] = (self.together if photograph else self.each)(d[key].float())
        return d


class InvertToLabelGridd(Invertd):
    """MONAI's ``Invertd`` for predictions that are compared with ``label``.

    If the label is on its file's grid, the preprocessing of the image is inverted for the prediction. If it was resized
    with its image, as for photographs, both are already on the network's grid.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Invert the predictions of the dictionary, unless spatial transforms were applied to its ``label``."""
        return dict(data) if data["label"].applied_operations else super().__call__(data)


class ThroughPlaneLastd(MapTransform, InvertibleTransform):
    """Move the through-plane axis of volumes last, so that ``volume[..., k]`` is slice k.

    After ``Orientationd`` a 2-D network then processes short-axis, sagittal and coronal stacks in the same way, for any
    order of axes in the file. The order of the two in-plane axes is kept. The affine is updated, and ``inverse``
    restores axes and affine, also for a prediction with another number of channels. 2-D images are unchanged.

    Args:
        keys: keys of channel-first images ``[C, H, W, D]`` or ``[C, H, W]`` on one grid. The first existing key decides
            for all, because headers of image and label are rounded differently.
        axis: one of :data:`scripts.data.axis.AXES`.
        allow_missing_keys: whether a key may be absent.

    Raises:
        ValueError: for another ``axis``.
    """

    def __init__(self, keys: KeysCollection, axis: str = THICKEST, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.axis = check_axis(axis)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Move the axis of every image in the dictionary."""
        d = dict(data)
        axis: int | None = None
        for key in self.key_iterator(d):
            image = d[key] if isinstance(d[key], MetaTensor) else MetaTensor(d[key])
            dims = image.ndim - 1
            if dims != 3:
                axis = dims - 1
            elif axis is None:
                axis = self._axis(image)
            order = [i for i in range(dims) if i != axis] + [axis]
            d[key] = self.push_transform(
                image.permute(0, *(i + 1 for i in order)).contiguous(),
                affine=_permutation(order),
                orig_size=image.shape[1:],
                extra_info={"order": order},
            )
        return d

    def _axis(self, image: MetaTensor) -> int:
        shape, affine = image.shape[1:], np.asarray(image.affine, dtype=np.float64)
        axis = slice_index(self.axis, shape, affine)
        own = slice_index(THICKEST, shape, affine)
        spacing = np.linalg.norm(affine[:3, :3], axis=0)
        if spacing[own] >= THICK * spacing[axis]:
            file = image.meta.get("filename_or_obj", "a volume")
            size = " x ".join(f"{side:.3g}" for side in spacing)
            logger.warning("%s: cut into %s slices, across thick ones (voxels of %s mm).", file, self.axis, size)
        return axis

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Undo the move.

        Args:
            data: dictionary with the transformed images, or predictions on their grid, ``[C', H, W, D]``.

        Returns:
            dictionary with axes and affine as before the transform.
        """
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key]
            order = list(self.pop_transform(image)["extra_info"]["order"])
            back = [order.index(i) for i in range(len(order))]
            moved = image.permute(0, *(i + 1 for i in back)).contiguous()
            moved.affine = image.affine @ to_affine_nd(len(image.affine) - 1, _permutation(back))
            d[key] = moved
        return d


def _permutation(order: list[int]) -> torch.Tensor:
    """Homogeneous matrix that maps a voxel index after ``permute(order)`` to the index before."""
    matrix = torch.zeros(len(order) + 1, len(order) + 1, dtype=torch.float64)
    for new, old in enumerate(order):
        matrix[old, new] = 1
    matrix[-1, -1] = 1
    return matrix
