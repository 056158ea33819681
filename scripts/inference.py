"""Inference over a cohort: a damaged image does not stop the others, and an interrupted run can be continued."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from ignite.engine import EventEnum
from ignite.handlers import ProgressBar
from monai.data import MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, SaveImaged
from monai.utils import MetaKeys
from torch.utils.data import Dataset

from scripts.data.cache import stored_files
from scripts.data.dicom.volume import DicomVolume
from scripts.data.fingerprint import fingerprint
from scripts.data.readers import is_photograph, read_grid
from scripts.data.volumes import VolumeDataset
from scripts.utils.errors import FaultsError, fault_line
from scripts.utils.files import update_digest
from scripts.utils.processes import from_first, gathered, rank_and_count
from scripts.utils.provenance import file_digest
from scripts.utils.threads import in_threads

__all__ = ["FILES", "CohortDataset", "CohortEvaluator", "CohortEvents", "Predictions"]

logger = logging.getLogger(__name__)

FORMAT = 1  # raise when the same input, weights and settings give other predictions than before
FILE, FAULT = "file", "fault"
FILES = "files"
"""Key of an item of an evaluator's output: the files that handlers wrote for it, besides those of its transforms."""


class CohortEvents(EventEnum):
    """Events of a :class:`CohortEvaluator`."""

    SEGMENTED = "segmented"
    """Once in a run, in the first process: all processes have segmented their images, or none was left to segment."""


class Predictions:
    """A folder of predictions and the images of a cohort that still lack one.

    ``predictions.jsonl`` in the folder has one line per segmented image: its path relative to the source, the written
    files, the digest of the weights, and a digest of everything that determines the result: the image's content, the
    weights and the settings. Several processes append to it, one whole line at a time.

    Args:
        output_dir: the folder.
        source_root: folder of the images, see :func:`scripts.data.images.source_root`.
        checkpoint: the weights.
        settings: everything else that determines the result: transforms, the inferer. Output paths are ignored.
        overwrite: segment every image, even if the result exists.
        output_ext: suffix of the label maps.

    Attributes:
        faults: a line for each image of this process's share that ``output_ext`` does not support.
    """

    name = "predictions.jsonl"

    def __init__(
        self,
        output_dir: str | Path,
        source_root: str | Path,
        checkpoint: str | Path,
        settings: Sequence[Any],
        overwrite: bool = False,
        output_ext: str = ".nii.gz",
    ) -> None:
        self.output_ext = output_ext
        self.faults: list[str] = []
        self.folder = Path(output_dir)
        self.root = str(source_root)
        self.overwrite = overwrite
        self.volumes: dict[str, DicomVolume] = {}
        # If the weights are missing, the handler that loads them reports it.
        self.weights = file_digest(checkpoint) if os.path.isfile(checkpoint) else None
        content = [FORMAT, self.weights, [_setting(value) for value in settings]]
        self.settings = hashlib.sha256(repr(content).encode())

    def pending(self, records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """This process's share of the records, without those whose prediction exists or cannot be written.

        Args:
            records: with the path of an ``image``; the same in every process.

        Raises:
            ValueError: if ``output_ext`` supports none of the images.
        """
        rank, count = rank_and_count()
        lines = in_threads(self._unsupported, [record["image"] for record in records])
        if lines and all(lines):
            more = f" The others of the {len(lines)} images do not fit either." if len(lines) > 1 else ""
            raise ValueError(lines[0] + more)
        self.faults = [line for line in lines[rank::count] if line]
        self.volumes = {v: v for record in records if isinstance(v := record["image"], DicomVolume)}
        # The partition of MONAI's partition_dataset, which refuses fewer records than processes.
        share = [record for record, line in list(zip(records, lines, strict=True))[rank::count] if not line]
        known = {} if self.overwrite else self._read()
        left = [record for record in share if not self._is_done(str(record["image"]), known)]
        if len(left) < len(share):
            logger.info("%d of %d images are segmented already in %s.", len(share) - len(left), len(share), self.folder)
        return left

    def add(self, image: str, files: Sequence[str]) -> None:
        """Record that an image was segmented.

        Args:
            image: its path.
            files: the files that were written for it.
        """
        entry = {
            "image": self._name(image),
            "files": [os.path.relpath(file, self.folder) for file in files],
            "weights_sha256": self.weights,
            "sha256": self._digest(image),
        }
        target = os.open(self.folder / self.name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(target, (json.dumps(entry) + "\n").encode())
        finally:
            os.close(target)

    def _unsupported(self, image: str) -> str:
        """Why there can be no label map of an image in the format; empty if there can. Only headers are read."""
        volume = image if isinstance(image, DicomVolume) else None
        if self.output_ext == ".dcm" and volume is None:
            return f"{image}: output_ext .dcm: expected a DICOM image, found another format."
        if self.output_ext == ".png":
            slices = 1
            if volume is not None:
                slices = len(volume.frames)
            elif not is_photograph(image):
                with suppress(ValueError, OSError):  # an image that cannot be read is reported when it is loaded
                    slices = read_grid(image)[0][2]
            if slices > 1:
                return f"{image}: output_ext .png: expected an image of one slice, found {slices}."
        return ""

    def _name(self, image: str) -> str:
        return Path(os.path.relpath(image, self.root)).as_posix()

    def _digest(self, image: str) -> str:
        digest = self.settings.copy()
        volume = self.volumes.get(image)
        if volume is not None:
            digest.update(repr([frame.number for frame in volume.frames]).encode())
        for file in stored_files(Path(image)) if volume is None else volume.files:
            update_digest(digest, file)
        return digest.hexdigest()

    def _read(self) -> dict[str, dict[str, Any]]:
        """The latest entry of each image; an incomplete line is ignored."""
        entries: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            for line in (self.folder / self.name).read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError, TypeError, KeyError, RecursionError):
                    entry = json.loads(line)
                    entries[str(entry["image"])] = {"files": [*map(str, entry["files"])], "sha256": entry["sha256"]}
        return entries

    def _is_done(self, image: str, known: Mapping[str, Mapping[str, Any]]) -> bool:
        entry = known.get(self._name(image))
        if entry is None or not all((self.folder / file).is_file() for file in entry["files"]):
            return False
        with suppress(OSError):  # an image that cannot be read is reported when it is loaded
            return bool(entry["sha256"] == self._digest(image))
        return False


class CohortDataset(Dataset):
    """Items of another data set with their image's path as ``"file"``; a faulty item has only this and ``"fault"``.

    Args:
        dataset: raises ValueError for a faulty item, as :class:`scripts.data.VolumeDataset` does.
    """

    def __init__(self, dataset: VolumeDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        """An item; the fault is one line."""
        file = str(self.dataset.data[index]["image"])
        try:
            return {**self.dataset[index], FILE: file}
        except ValueError as error:
            return {FILE: file, FAULT: str(error)}


class CohortEvaluator(SupervisedEvaluator):
    """MONAI evaluator that segments images one by one and continues after one that cannot be segmented.

    Args:
        val_data_loader: over a :class:`CohortDataset`, one image per batch.
        predictions: records the written files, after all handlers of ``IterationEvents``, whose errors are faults of
            their image. They may add files to the item's list :data:`FILES`.
        **options: of :class:`monai.engines.SupervisedEvaluator`.

    Raises:
        FaultsError: at the end of ``run``, if images could not be segmented: one line for each. The first process
            reports those of all processes; the others exit with code 1.
    """

    def __init__(self, val_data_loader: Any, predictions: Predictions, **options: Any) -> None:
        super().__init__(val_data_loader=val_data_loader, event_names=[CohortEvents], **options)
        self.predictions = predictions
        self.faults: list[str] = []
        if rank_and_count()[0] == 0:
            ProgressBar(desc="images", persist=True, disable=None).attach(self)  # on a terminal only

    def run(self, global_epoch: int = 1) -> None:  # type: ignore[override]
        """Segment all images; the class lists the errors."""
        begin = time.perf_counter()
        self.faults = [*self.predictions.faults]
        own = len(self.data_loader) + len(self.faults)  # type: ignore[arg-type]
        if len(self.data_loader):  # type: ignore[arg-type]
            super().run(global_epoch)
        lines = sorted(line for part in gathered(self.faults) for line in part)
        total = sum(gathered(own))
        # The others wait: torchrun ends the first process as soon as one of them exits with an error.
        from_first(lambda: self.fire_event(CohortEvents.SEGMENTED))
        if rank_and_count()[0] > 0:
            if lines:
                raise SystemExit(1)
            return
        minutes = (time.perf_counter() - begin) / 60
        logger.info("Segmented %d images in %.1f min, %.1f per minute.", total - len(lines), minutes, total / minutes)
        if lines:
            logger.warning("%d of %d images could not be segmented:", len(lines), total)
            raise FaultsError(lines, shown=len(lines))

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        file = batchdata[FILE][0]
        if FAULT in batchdata:
            self.faults.append(batchdata[FAULT][0])
            return []
        try:
            output = super()._iteration(engine, batchdata)
            self.predictions.add(file, _saved(cast(list[dict[str, Any]], output)))  # decollated
        except Exception as error:
            self.faults.append(fault_line(error, file))
            return []
        return output


def _setting(value: Any) -> Any:
    """A setting without its output paths."""
    if isinstance(value, Compose):
        return [_setting(transform) for transform in value.flatten().transforms]
    if isinstance(value, SaveImaged):
        saver = value.saver
        return fingerprint([type(value), value.keys, saver.output_ext, saver.writers, saver.init_kwargs])
    return fingerprint(value)


def _saved(output: Sequence[Mapping[str, Any]]) -> list[str]:
    """The files that transforms and handlers wrote from an engine's output."""
    values = [value for item in output for value in item.values() if isinstance(value, MetaTensor)]
    maps = [str(value.meta[MetaKeys.SAVED_TO]) for value in values if MetaKeys.SAVED_TO in value.meta]
    return maps + [str(file) for item in output for file in item.get(FILES, [])]
