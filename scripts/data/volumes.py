"""Whole volumes, for validation, evaluation and inference."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.data import Dataset, MetaTensor
from monai.transforms import Compose, Transform

from scripts.data.checks import check_class_settings, check_classes, check_finite, check_grids, remarks
from scripts.utils.errors import fault_line
from scripts.utils.threads import in_threads

__all__ = ["VolumeDataset"]

logger = logging.getLogger(__name__)


class VolumeDataset(Dataset):
    """Preprocessed volumes; a fault names its file.

    Args:
        data: records with the path of an ``image`` and optionally of a ``label``.
        transform: deterministic preprocessing to ``image`` ``[C, ...]``.
        channels: number of the network's input channels.
        num_classes: with labels: their values must be 0..num_classes - 1; at most 256.
        in_memory: preprocess all volumes once, now, instead of at each access. Faults are then found at the start, and
            checked labels are stored in 8 bits.
        faults: if given, volumes are preprocessed now, faulty ones are left out and a line for each is added to this
            list.

    Raises:
        ValueError: if ``transform`` does not fit ``num_classes``, or for a file that cannot be read or does not fit; at
            once if ``in_memory``, else at access.
    """

    def __init__(
        self,
        data: Sequence[Mapping[Hashable, Any]],
        transform: Transform,
        channels: int,
        num_classes: int | None = None,
        in_memory: bool = False,
        faults: list[str] | None = None,
    ) -> None:
        super().__init__(data, transform)
        self.channels = channels
        self.num_classes = num_classes
        if num_classes is not None:
            check_class_settings(num_classes, Compose(transform).flatten().transforms)
        self._items: list[Any] = []
        if faults is not None:
            items = in_threads(self._item_or_fault, range(len(data)), "reading volumes")
            faults += [item for item in items if isinstance(item, str)]
            self.data = [record for record, item in zip(data, items, strict=True) if not isinstance(item, str)]
            self._items = [item for item in items if not isinstance(item, str)]
        elif in_memory:
            self._items = in_threads(self._load_to_keep, range(len(data)), "reading volumes")

    def _transform(self, index: int) -> Any:
        return self._items[index] if self._items else self._load(index)

    def _item_or_fault(self, index: int) -> Any:
        try:
            return self._load_to_keep(index)
        except ValueError as error:
            return str(error)

    def _load_to_keep(self, index: int) -> Any:
        item = self._load(index)
        if "label" in self.data[index] and self.num_classes is not None:
            item["label"] = item["label"].to(torch.uint8)  # on its file's own grid its shape differs from the image's
        return item

    def _load(self, index: int) -> Any:
        record = self.data[index]
        try:
            item = super()._transform(index)
        except Exception as error:
            files = (str(record[key]) for key in ("image", "label") if key in record)
            raise ValueError(fault_line(error, *files)) from None
        image = item["image"]
        if image.shape[0] != self.channels:
            raise ValueError(f"{record['image']}: found {image.shape[0]} channels, expected {self.channels}.")
        check_finite(image, record["image"])
        if "label" not in record and isinstance(image, MetaTensor):
            for line in remarks(image.numpy(), bool(image.meta.get("few_values", False))):
                logger.warning("%s %s", record["image"], line)
        if "label" in record and self.num_classes is not None:
            check_grids(image, item["label"], record)
            check_classes(item["label"], record["label"], self.num_classes)
        return item
