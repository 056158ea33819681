"""Transforms that MONAI does not give."""

from __future__ import annotations

import numbers
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, to_affine_nd
from monai.transforms import Invertd, InvertibleTransform, MapTransform

__all__ = ["InvertToLabelGridd", "LabelValuesd", "ThroughPlaneLastd", "through_plane_axis"]


def through_plane_axis(shape: tuple[int, ...], spacing: tuple[float, ...]) -> int:
    """Guess which axis of a volume counts its slices.

    Args:
        shape: number of voxels along each of the three axes.
        spacing: voxel size along each axis, in mm.

    Returns:
        the only axis of a single voxel; else the axis with the largest spacing where that is at least 1.25 times the
        second largest; else, as isotropic or unknown spacing says nothing, the axis with the fewest voxels; else, where
        several have as few, the last.
    """
    if shape.count(1) == 1:
        return shape.index(1)
    _, second, largest = np.sort(spacing)
    if largest >= 1.25 * second:
        return int(np.argmax(spacing))
    if shape.count(min(shape)) == 1:
        return shape.index(min(shape))
    return len(shape) - 1


class LabelValuesd(MapTransform):
    """Turn the values that a label file stores, such as a mask's 0 and 255, into classes.

    MONAI's ``MapLabelValued`` passes other values on as they are, so that a faulty mask would teach a faulty class.
    A label that has other values, but none beside the classes' own numbers, is kept: so do viewers write what a
    MONAI Label server's clinicians draw. It is refused where a class's number is what another one stores, as 2 of
    [0, 2, 3]: some of a viewer's labels would pass for stored ones.

    Args:
        keys: keys of label maps of any shape.
        values: the stored values in the order of the classes; None: files store the classes, labels pass unchanged.
        allow_missing_keys: whether a key may be absent.

    Raises:
        ValueError: when ``values`` is no list of different numbers.
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
            ValueError: for a value that stands for no class.
        """
        d = dict(data)
        if self.values is None:
            return d
        for key in self.key_iterator(d):
            label = d[key]
            classes = torch.full_like(label, -1, dtype=torch.float32)
            for number, value in enumerate(self.values):
                classes[label == value] = number
            strange = label[classes < 0]
            own = torch.arange(len(self.values), dtype=label.dtype)
            if strange.numel() and not self.ambiguous and torch.isin(label, own).all():
                classes = label.float()
            elif strange.numel():
                found = ", ".join(f"{v:g}" for v in torch.unique(strange).tolist()[:5])
                file = label.meta.get("filename_or_obj") if isinstance(label, MetaTensor) else None
                what = f"label values must be {', '.join(map(str, self.values))}, found {found}."
                raise ValueError(f"{file}: {what}" if file else what)
            d[key] = classes
        return d


class InvertToLabelGridd(Invertd):
    """MONAI's ``Invertd`` for predictions that are scored against ``label``.

    A label that lies on its file's grid needs the prediction there: the preprocessing of the image is inverted. A
    label that was resized along with its image, as the photographs' are, lies on the network's grid, where the
    prediction is already.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Invert the predictions of the dictionary, unless spatial transforms were applied to its ``label``."""
        return dict(data) if data["label"].applied_operations else super().__call__(data)


class ThroughPlaneLastd(MapTransform, InvertibleTransform):
    """Move the through-plane axis of volumes last, so that ``volume[..., k]`` is slice k.

    After ``Orientationd`` this makes short-axis, sagittal or coronal stacks alike to a 2-D network, whatever order
    their file stores the axes in. The order of the two in-plane axes stays. The affine follows, and ``inverse``
    restores axes and affine, also on a prediction with another number of channels. 2-D images pass unchanged.

    Args:
        keys: keys of channel-first images ``[C, H, W, D]`` or ``[C, H, W]``.
        allow_missing_keys: whether a key may be absent.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Move the axis of every image in the dictionary."""
        d = dict(data)
        for key in self.key_iterator(d):
            image = d[key] if isinstance(d[key], MetaTensor) else MetaTensor(d[key])
            dims = image.ndim - 1
            axis = dims - 1
            if dims == 3:
                spacing = affine_to_spacing(image.affine, r=3, dtype=np.float64)
                axis = through_plane_axis(tuple(image.shape[1:]), tuple(np.asarray(spacing).tolist()))
            order = [i for i in range(dims) if i != axis] + [axis]
            d[key] = self.push_transform(
                image.permute(0, *(i + 1 for i in order)).contiguous(),
                affine=_permutation(order),
                orig_size=image.shape[1:],
                extra_info={"order": order},
            )
        return d

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
