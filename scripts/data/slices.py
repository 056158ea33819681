"""Slices of cached volumes, and the loader of labelled and unlabelled batches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from monai.transforms import Compose
from torch.utils.data import Dataset

from scripts.data.axis import THICKEST
from scripts.data.cache import cached_volumes
from scripts.data.checks import add_or_raise
from scripts.data.transforms import ThroughPlaneLastd

__all__ = ["SemiSupervisedLoader", "SliceDataset"]


class SliceDataset(Dataset):
    """The 2-D slices of preprocessed records; a record without a label gives unlabelled slices.

    Args:
        data: records with the path of an ``"image"`` and, if labelled, of a ``"label"``.
        preprocessing: deterministic transforms, see :func:`scripts.data.cache.cached_volumes`.
        cache_dir: folder of the preprocessed volumes.
        num_classes: number of classes, background included.
        unlabeled: further records, such as those of :class:`scripts.monai_label.Studies`.
        channels: required number of channels; None: that of the first slice.
        faults: if given, faulty records are left out and a line for each is added to this list.

    Attributes:
        data: the valid records.
        labeled: indices of the labelled slices.
        unlabeled: indices of the unlabelled slices.
        slice_axis: slice axis of the volumes, one of :data:`scripts.data.axis.AXES`.

    Raises:
        ValueError: if a file is faulty or the records' slices differ in size or channels.
    """

    def __init__(
        self,
        data: Sequence[Mapping[str, Any]],
        preprocessing: Compose,
        cache_dir: str | Path,
        num_classes: int,
        unlabeled: Sequence[Mapping[str, Any]] = (),
        channels: int | None = None,
        faults: list[str] | None = None,
    ) -> None:
        steps = preprocessing.flatten().transforms
        self.slice_axis = next((step.axis for step in steps if isinstance(step, ThroughPlaneLastd)), THICKEST)
        volumes = cached_volumes([*data, *unlabeled], preprocessing, cache_dir, num_classes, faults)
        first = next((volume for volume in volumes if channels in (None, volume.shape[1])), None)
        self.volumes = [volume for volume in volumes if first and volume.shape[1:] == first.shape[1:]]
        self.data = [volume.record for volume in self.volumes]
        unlike = [volume for volume in volumes if first is None or volume.shape[1:] != first.shape[1:]]
        like = (
            f"those of {first.record['image']} are {list(first.shape[1:])}"
            if first
            else f"expected {channels} channels"
        )
        add_or_raise(
            [
                f"{volume.record['image']}: preprocessed slices [C, H, W] are {list(volume.shape[1:])}, {like}; "
                "expected the same for all."
                for volume in unlike
            ],
            faults,
        )
        counts = [volume.shape[0] for volume in self.volumes]
        self._volume = np.repeat(np.arange(len(counts)), counts)
        self._slice = np.concatenate([np.arange(n) for n in counts]) if counts else np.arange(0)
        has_label = np.repeat([volume.label_file is not None for volume in self.volumes], counts).astype(bool)
        self.labeled = np.flatnonzero(has_label)
        self.unlabeled = np.flatnonzero(~has_label)

    def __len__(self) -> int:
        return len(self._volume)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One slice.

        Args:
            index: 0..len(self) - 1.

        Returns:
            ``{"image": float32 [C, H, W]}`` and, if labelled, ``"label": uint8 [1, H, W]``; copies of the memory map.
        """
        volume, k = self.volumes[self._volume[index]], self._slice[index]
        item = {"image": torch.from_numpy(np.array(volume.image[k]))}
        label = volume.label
        if label is not None:
            item["label"] = torch.from_numpy(np.array(label[k]))[None]
        return item


class SemiSupervisedLoader:
    """Endless batches of labelled and unlabelled slices: a pure function of seed and iteration.

    Both streams use a new permutation per pass; a batch continues across the end of a pass, so every batch is full and
    a labelled list shorter than the batch repeats. There are no worker processes: loading a slice is one copy from a
    memory map. To resume, set :attr:`iteration`.

    Args:
        dataset: the slices.
        batch_size: labelled slices per process, and as many unlabelled ones; at least 1.
        seed: seed of the permutations, not negative.
        rank: this process's number, which selects its part of the global batch. Default: that of ``torch.distributed``
            if initialised, else 0.
        world_size: number of processes. Default: as for ``rank``, else 1.
        requires_unlabeled: whether the method learns from unlabelled slices.
        requires_labeled: whether labelled slices are required; a federated site may have none.

    Attributes:
        iteration: number of the next batch.

    Raises:
        ValueError: if ``dataset`` lacks required labelled or unlabelled slices; for an invalid batch size or seed.
    """

    def __init__(
        self,
        dataset: SliceDataset,
        batch_size: int,
        seed: int,
        rank: int | None = None,
        world_size: int | None = None,
        requires_unlabeled: bool = False,
        requires_labeled: bool = True,
    ) -> None:
        for name, value, lowest in (("batch_size", batch_size, 1), ("seed", seed, 0)):
            if not isinstance(value, int) or value < lowest:
                raise ValueError(f"{name}: expected a whole number of at least {lowest}, found {value!r}.")
        if len(dataset.labeled) == 0 and (requires_labeled or len(dataset) == 0):
            raise ValueError(
                f"none of the {len(dataset)} training slices has a label: training needs labelled cases. (A federated "
                "site may have none; see docs/federated.md.)"
            )
        if requires_unlabeled and len(dataset.unlabeled) == 0:
            raise ValueError(
                "the method needs unlabelled images, but the training data has none (a record without a label is "
                "unlabelled): lower `labeled`, or train with configs/methods/supervised.json."
            )
        distributed = dist.is_available() and dist.is_initialized()
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank if rank is not None else dist.get_rank() if distributed else 0
        self.world_size = world_size if world_size is not None else dist.get_world_size() if distributed else 1
        self.iteration = 0
        self._permutation = lru_cache(maxsize=4)(self._draw)

    def __len__(self) -> int:
        """Number of batches in one pass over the unlabelled slices (over the labelled ones without unlabelled)."""
        total = len(self.dataset.unlabeled) or len(self.dataset.labeled)
        return math.ceil(total / (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Endless batches from :attr:`iteration` on.

        Yields:
            ``{"image": float32 [B, C, H, W], "label": uint8 [B, 1, H, W], "unlabeled": float32 [B, C, H, W]}``;
            ``"unlabeled"`` is absent if there are no unlabelled slices, the others if there are no labelled ones.
        """
        while True:
            batch = self.batch(self.iteration)
            self.iteration += 1
            yield batch

    def batch(self, iteration: int) -> dict[str, torch.Tensor]:
        """The batch of one iteration, see :meth:`__iter__`."""
        batch = {}
        if len(self.dataset.labeled):
            items = [self.dataset[i] for i in self._indices(0, iteration)]
            batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "label")}
        if len(self.dataset.unlabeled):
            batch["unlabeled"] = torch.stack([self.dataset[i]["image"] for i in self._indices(1, iteration)])
        return {k: v.pin_memory() for k, v in batch.items()} if torch.cuda.is_available() else batch

    def _indices(self, stream: int, iteration: int) -> list[int]:
        """This process's slices of a stream (0 labelled, 1 unlabelled) in one iteration."""
        total = len((self.dataset.labeled, self.dataset.unlabeled)[stream])
        start = (iteration * self.world_size + self.rank) * self.batch_size
        positions = range(start, start + self.batch_size)
        return [int(self._permutation(stream, p // total)[p % total]) for p in positions]

    def _draw(self, stream: int, number: int) -> np.ndarray:
        """Order of the slices in one pass of a stream."""
        indices = (self.dataset.labeled, self.dataset.unlabeled)[stream]
        return np.random.default_rng([self.seed, stream, number]).permutation(indices)
