"""Preprocessed volumes on disk: computed once per content and settings, then memory-mapped."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandomizableTrait

from scripts.data.checks import (
    add_or_raise,
    check_class_settings,
    check_classes,
    check_finite,
    check_grids,
    remarks,
)
from scripts.data.fingerprint import fingerprint
from scripts.data.readers import voxel_files
from scripts.utils.errors import WriteError, fault_line
from scripts.utils.files import check_writable, replacing, update_digest, write_text
from scripts.utils.processes import gathered, rank_and_count
from scripts.utils.threads import in_threads

__all__ = ["Volume", "cached_volumes", "stored_files"]

logger = logging.getLogger(__name__)

CHECKSUM = 4  # bytes
FORMAT = 5  # increase when the stored data, the checks or the meaning of a transform of scripts.data change


@dataclass(frozen=True)
class Volume:
    """One preprocessed record.

    Attributes:
        record: its record.
        image_file: ``.npy`` file of the image.
        label_file: ``.npy`` file of the label, None if unlabelled.
        shape: ``(slices, C, H, W)``.
    """

    record: Mapping[str, Any]
    image_file: Path
    label_file: Path | None
    shape: tuple[int, ...]

    @property
    def image(self) -> np.ndarray:
        """Read-only memory map, float32 ``[slices, C, H, W]``."""
        return _map(self.image_file)

    @property
    def label(self) -> np.ndarray | None:
        """Read-only memory map, uint8 ``[slices, H, W]`` with class indices; None if unlabelled."""
        return None if self.label_file is None else _map(self.label_file)


def cached_volumes(
    data: Sequence[Mapping[str, Any]],
    preprocessing: Compose,
    cache_dir: str | Path,
    num_classes: int,
    faults: list[str] | None = None,
) -> list[Volume]:
    """Preprocess records, or reuse the result of an earlier run.

    The key of an entry is the content of the files, the settings of the transforms and ``num_classes``: a stale entry
    is never used, and renamed or moved files are found again. Damaged entries are recomputed. Old entries are not
    deleted. Under ``torchrun`` all processes must call this with the same records; the processes of a machine share the
    work.

    Args:
        data: records with the path of an ``"image"`` and, if labelled, of a ``"label"``.
        preprocessing: deterministic dictionary transforms from paths to channel-first ``[C, H, W, D]`` (slices
            last) or ``[C, H, W]`` tensors. The transforms of the label need ``allow_missing_keys=True`` if records lack
            one. Their attributes must not change with use.
        cache_dir: folder of the entries, created if missing.
        num_classes: label values must be 0..num_classes - 1; at most 256.
        faults: if given, faulty records are left out and a line for each is added to this list.

    Returns:
        one volume per record, in order.

    Raises:
        ValueError: if ``preprocessing`` is random or does not fit ``num_classes``, or if files are unreadable or do not
            fit each other: one line for each of the first faulty records.
    """
    transforms = preprocessing.flatten().transforms
    for transform in transforms:
        if isinstance(transform, RandomizableTrait):
            raise ValueError(f"cached preprocessing must be deterministic, but it has {type(transform).__name__}.")
    check_class_settings(num_classes, transforms)
    settings = repr([FORMAT, num_classes, monai.__version__, [fingerprint(t) for t in transforms]]).encode()
    root = Path(cache_dir)
    check_writable(root)
    root.mkdir(parents=True, exist_ok=True)

    stems = in_threads(lambda record: _try(_stem, record, root, settings), data)
    # A share of all entries, because the set of missing ones changes while the others work.
    entries = [entry for entry in _share(list(enumerate(stems))) if isinstance(entry[1], Path)]
    there = in_threads(lambda entry: _is_there(data[entry[0]], entry[1]), entries)
    missing = [entry for entry, found in zip(entries, there, strict=True) if not found]
    if missing:
        logger.info("preprocessing %d volumes -> %s", len(missing), root)
    results = in_threads(
        lambda job: _try(_store, data[job[0]], job[1], preprocessing, num_classes), missing, "preprocessing"
    )
    outcomes = [*enumerate(stems), *zip((number for number, _ in missing), results, strict=True)]
    own = {number: outcome for number, outcome in outcomes if isinstance(outcome, str)}
    faulty = {number: line for lines in gathered(own) for number, line in lines.items()}
    add_or_raise([faulty[number] for number in sorted(faulty)], faults)
    pairs = enumerate(zip(data, stems, strict=True))
    volumes = [_open(record, stem) for number, (record, stem) in pairs if number not in faulty]
    _tell_remarks(volumes)
    return volumes


def _tell_remarks(volumes: Sequence[Volume]) -> None:
    """Log the warnings from preprocessing the volumes, in this run or an earlier one."""
    for volume in volumes:
        file = _remarks_file(volume.image_file)
        if file.is_file():
            for line in file.read_text(encoding="utf-8").splitlines():
                logger.warning("%s %s", volume.record["image"], line)


def _share(entries: list[Any]) -> list[Any]:
    """This process's share of the work of all processes on its machine."""
    if rank_and_count()[1] == 1:
        return entries
    # set by torchrun; without them the process is alone on its machine
    rank, count = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", 0), ("LOCAL_WORLD_SIZE", 1)))
    return entries[rank::count]


def _try(step: Any, record: Mapping[str, Any], *args: Any) -> Any:
    """Result of a step, or its fault as one line with the file's name."""
    try:
        return step(record, *args)
    except WriteError:  # a fault of the cache's folder, not of the image
        raise
    except Exception as error:
        return fault_line(error, *(str(record[key]) for key in ("image", "label") if key in record))


def _most_open() -> int:
    """Maximum number of open maps: each uses a file descriptor, of which macOS allows a process 256."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 256
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 256 if allowed == resource.RLIM_INFINITY else max(1, min(256, allowed // 4))


@lru_cache(maxsize=_most_open())
def _map(file: Path) -> np.ndarray:
    """The file's array; only the latest maps are kept open."""
    return np.load(file, mmap_mode="r")


def _image_file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".image.npy")


def _label_file(stem: Path) -> Path:
    return stem.with_name(stem.name + ".label.npy")


def _remarks_file(image_file: Path) -> Path:
    return image_file.with_suffix(".txt")


def _stem(record: Mapping[str, Any], root: Path, settings: bytes) -> Path:
    digest = hashlib.sha256(settings)
    for key in ("image", "label"):
        if key in record:
            digest.update(key.encode())
            for file in stored_files(Path(record[key])):
                update_digest(digest, file)
    return root / digest.hexdigest()


def stored_files(path: Path) -> Iterator[Path]:
    """The file and, for a MetaImage header, the files of its voxels."""
    yield path
    yield from voxel_files(path)


def _store(record: Mapping[str, Any], stem: Path, preprocessing: Compose, num_classes: int) -> None:
    item = preprocessing(dict(record))
    image = item["image"]
    pixels = _slices_first(image, record["image"])
    check_finite(torch.from_numpy(pixels), record["image"])
    if "label" in record:
        label = item["label"]
        check_grids(image, label, record)
        classes = _slices_first(label, record["label"])
        if classes.shape[1] != 1 or classes[:, 0].shape != pixels[:, 0].shape:
            raise ValueError(
                f"{record['label']}: the preprocessed label has shape {classes.shape}, the image {pixels.shape}; "
                "a label has one channel and the same slices."
            )
        check_classes(classes, record["label"], num_classes)
        _save(_label_file(stem), classes[:, 0].astype(np.uint8))
    few = "label" not in record and isinstance(image, MetaTensor) and bool(image.meta.get("few_values", False))
    if odd := remarks(pixels, few):
        write_text(_remarks_file(_image_file(stem)), "\n".join(odd) + "\n")
    _save(_image_file(stem), pixels.astype(np.float32))  # written last: marks a complete entry


def _slices_first(tensor: torch.Tensor, path: str) -> np.ndarray:
    """``[C, H, W, D]`` or ``[C, H, W]`` to ``[slices, C, H, W]``."""
    array = np.asarray(tensor)
    if array.ndim not in (3, 4):
        raise ValueError(f"{path}: expected a channel-first 2-D or 3-D image, found shape {array.shape}.")
    return np.moveaxis(array, -1, 0) if array.ndim == 4 else array[None]


def _save(file: Path, array: np.ndarray) -> None:
    """Write an array, followed by the file's checksum, which readers of ``.npy`` ignore."""
    # Records with the same content share the file, also across processes and machines.
    with replacing(file) as temporary:
        np.save(temporary, np.ascontiguousarray(array))
        checksum = _checksum(temporary, temporary.stat().st_size)
        with open(temporary, "ab") as stream:
            stream.write(checksum)


def _is_there(record: Mapping[str, Any], stem: Path) -> bool:
    """Whether an entry exists and its checksums match; a damaged file is logged."""
    for file in (_image_file(stem), *([_label_file(stem)] if "label" in record else [])):
        if not file.is_file():
            return False
        size = file.stat().st_size - CHECKSUM
        with open(file, "rb") as stream:
            stream.seek(max(size, 0))
            if size < 0 or stream.read() != _checksum(file, size):
                logger.warning("%s: a damaged file of the cache, recomputed.", file)
                return False
    return True


def _checksum(file: Path, size: int) -> bytes:
    """CRC-32 of the first bytes of a file, to detect damage by disks and interrupted copies."""
    value = 0
    with open(file, "rb") as stream:
        while size > 0 and (block := stream.read(min(size, 1 << 20))):
            value, size = zlib.crc32(block, value), size - len(block)
    return value.to_bytes(CHECKSUM, "little")


def _open(record: Mapping[str, Any], stem: Path) -> Volume:
    shape = np.load(_image_file(stem), mmap_mode="r").shape
    return Volume(record, _image_file(stem), _label_file(stem) if "label" in record else None, shape)
