"""The studies of a MONAI Label datastore that a training can learn from."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from monai.transforms import Compose

from scripts.data import SliceDataset, VolumeDataset
from scripts.data.layouts.custom import IMAGE_SUFFIXES
from scripts.monai_label.segments import ClassTerms, Segment, conform_label, dicom_segments, listed_segments
from scripts.monai_label.server import end_with_server

__all__ = ["Studies", "run_folder", "training_slices", "validation_volumes"]

logger = logging.getLogger(__name__)

INDEX = "datastore_v2.json"
FINAL = "final"
RETRIES = 10  # the server rewrites its index at every change; retry an incomplete read


class Studies:
    """The training data of a datastore: MONAI Label's usable records, and all other studies as unlabelled images.

    The names of a label's segments determine its classes: those that a viewer lists with it, or those of its DICOM SEG
    in an archive. Without names its values are the classes. A label whose segments are not the classes is left out with
    a warning that names the study; one that covers a part of its image's slices is padded with background.

    If every study is labelled, the training images also serve as unlabelled ones, as FixMatch's authors do with all
    labelled images.

    Args:
        labeled: training records, with the paths of ``image`` and ``label``.
        validation: validation records; their images are never used as unlabelled ones.
        cache_dir: folder for converted labels.
        class_names: name of each foreground class by its number as text; empty: names are unknown.
        class_synonyms: further names, see :class:`scripts.monai_label.segments.ClassTerms`.
        class_codes: codes of the classes.
        label_values: value of each class in label files, background first, as the training's preprocessing reads them;
            None: the class's number.

    Attributes:
        root: the datastore's folder; None without a datastore, the records are then unchanged.
        labeled: training records.
        validation: validation records.
        unlabeled: records with only an absolute ``image``, sorted by name.
        left_out: one line for each label or study that is not used.
        counts: numbers of studies of a training, in words; "" before :func:`training_slices`.
        begin: creation time of this object, by the monotonic clock.

    Raises:
        ValueError: if the datastore's index cannot be read.
    """

    def __init__(
        self,
        labeled: Sequence[Mapping[str, Any]],
        validation: Sequence[Mapping[str, Any]] = (),
        cache_dir: str | Path = ".cache",
        class_names: Mapping[str, str] | None = None,
        class_synonyms: Mapping[str, Sequence[str]] | None = None,
        class_codes: Mapping[str, Mapping[str, str]] | None = None,
        label_values: Sequence[float] | None = None,
    ) -> None:
        self.begin = time.monotonic()
        self.labeled, self.validation = ([dict(record) for record in records] for records in (labeled, validation))
        self.unlabeled: list[dict[str, str]] = []
        self.left_out: list[str] = []
        self.counts = ""
        self.root = _datastore(labeled) or _datastore(validation)
        if self.root is None:
            return
        end_with_server()
        images, finals = _read(self.root)
        known = {os.path.realpath(record["image"]) for record in (*labeled, *validation)}
        self.unlabeled = [{"image": image} for image in images if image not in known]
        self._finals = finals
        self._terms = ClassTerms(class_names, class_synonyms, class_codes) if class_names else None
        self._values = label_values
        self._folder = Path(cache_dir) / "labels"
        self.labeled, self.validation = (self._usable(records) for records in (self.labeled, self.validation))
        if not self.unlabeled:
            logger.info("Every study has a label: the labelled training images also serve as unlabelled ones.")
            self.unlabeled = [{"image": str(record["image"])} for record in self.labeled]

    def leave_out(self, faults: Sequence[str]) -> None:
        """Record what is left out, with a warning for each line."""
        for fault in faults:
            logger.warning("Left out: %s", fault)
        self.left_out += faults

    def _usable(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records whose labels have the classes and their images' grids; others are left out."""
        usable = []
        for record in records:
            label = Path(record["label"])
            final = self._finals.get(os.path.realpath(label))
            study = final.study if final else label.name
            try:
                classes = self._classes(final) if final and self._terms else {}
                if self._values is not None:  # the preprocessing turns them into classes
                    classes = {value: int(self._values[number]) for value, number in classes.items()}
                target = self._folder / f"{study}.nii.gz"
                usable.append({**record, "label": str(conform_label(Path(record["image"]), label, classes, target))})
            except ValueError as error:
                self.leave_out([f"the final label of '{study}': {str(error).rstrip('.')}."])
        return usable

    def _classes(self, final: _Final) -> dict[int, int]:
        assert self._terms is not None
        segments = final.segments
        if not segments and final.folder is not None:
            segments = dicom_segments(final.folder, len(self._terms.names))
        if not segments and final.archived:
            raise ValueError("its segments have no known names")
        classes = self._terms.classes(segments)
        missing = [name for number, name in self._terms.names.items() if segments and number not in classes.values()]
        if missing:
            logger.info("The final label of '%s' has no %s: trained as absent.", final.study, ", ".join(missing))
        return classes


@dataclass(frozen=True)
class _Final:
    """A final label in the datastore's index.

    Attributes:
        study: name of its study.
        segments: the segments that a viewer listed; may be empty.
        archived: whether it came from an archive.
        folder: folder of its DICOM SEG, if available.
    """

    study: str
    segments: list[Segment]
    archived: bool
    folder: Path | None


def training_slices(
    data: Sequence[Mapping[str, Any]],
    studies: Studies,
    validation: VolumeDataset,
    preprocessing: Compose,
    channels: int,
    **options: Any,
) -> SliceDataset:
    """The training slices of a datastore; studies that cannot be used are left out.

    Args:
        data: MONAI Label's records, used without a datastore.
        studies: the studies of these records.
        validation: the validation data.
        preprocessing: see :class:`scripts.data.SliceDataset`.
        channels: number of the network's input channels.
        **options: of :class:`scripts.data.SliceDataset`.
    """
    if studies.root is None:
        return SliceDataset(data, preprocessing, **options)
    faults: list[str] = []
    slices = SliceDataset(
        studies.labeled,
        preprocessing,
        unlabeled=studies.unlabeled,
        channels=channels,
        faults=faults,
        **options,
    )
    studies.leave_out(faults)
    studies.labeled = [dict(record) for record in slices.data if "label" in record]
    labeled = {str(record["image"]) for record in slices.data if "label" in record}
    others = {str(record["image"]) for record in slices.data} - labeled
    studies.counts = (
        f"learning from {len(labeled)} labelled and {len(others)} unlabelled studies, validating on {len(validation)}"
    )
    logger.info("MONAI Label datastore: %s.", studies.counts)
    return slices


def validation_volumes(data: Sequence[Mapping[Hashable, Any]], studies: Studies, **options: Any) -> VolumeDataset:
    """The validation volumes of a datastore; studies that cannot be used are left out.

    Args:
        data: MONAI Label's records, used without a datastore.
        studies: the studies of these records.
        **options: of :class:`scripts.data.VolumeDataset`.
    """
    if studies.root is None:
        return VolumeDataset(data, **options)
    faults: list[str] = []
    records: list[Mapping[Hashable, Any]] = [dict(record.items()) for record in studies.validation]
    volumes = VolumeDataset(records, faults=faults, **options)
    studies.leave_out(faults)
    studies.validation = [dict(record) for record in volumes.data]
    return volumes


def run_folder(output_dir: str | Path, data: Sequence[Mapping[str, Any]]) -> str:
    """Folder of a run: ``output_dir``, or for a MONAI Label datastore a new subfolder, named by the time.

    A server starts many trainings, which must not share a folder.

    Args:
        output_dir: folder for results.
        data: training records.
    """
    if _datastore(data) is None:
        return str(output_dir)
    return str(Path(output_dir) / datetime.now().strftime("%Y%m%d-%H%M%S"))


def _datastore(records: Sequence[Mapping[str, Any]]) -> Path | None:
    """Root of the datastore of the records' labels.

    The server resolves links, so a linked label may be in another folder; its image then gives the datastore.
    """
    labeled = [record for record in records if "label" in record]
    labels = {os.path.realpath(record["label"]) for record in labeled}
    places = [(Path(record["label"]).parent.parent.parent, Path(record["image"]).parent) for record in labeled]
    for root in dict.fromkeys(root for pair in places for root in pair):
        final = root / "labels" / FINAL
        if not (root / INDEX).is_file() or not final.is_dir():
            continue
        if labels & {os.path.realpath(path) for path in final.iterdir()}:
            return root
    return None


def _read(root: Path) -> tuple[list[str], dict[str, _Final]]:
    """Real paths of the images without a final label, and the final labels by their real paths."""
    path = root / INDEX
    try:
        index = _read_index(path)
        folder, labels = root / index["images_dir"], root / "labels" / FINAL
        names, finals = [], {}
        for name, entry in sorted(index["objects"].items()):
            if FINAL not in entry["labels"]:
                names.append(f"{name}{entry['image']['ext']}")
                continue
            label = entry["labels"][FINAL]
            info = label.get("info") or {}
            series = info.get("SeriesInstanceUID")
            fetched = labels / str(series)
            final = _Final(name, listed_segments(info), bool(series), fetched if series and fetched.is_dir() else None)
            finals[os.path.realpath(labels / f"{name}{label['ext']}")] = final
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: expected MONAI Label's list of studies, found {error!r}.") from None
    images = [os.path.realpath(folder / name) for name in names if not name.startswith(".")]
    # a datastore may list formats that the preprocessing cannot read
    return [image for image in images if image.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(image)], finals


def _read_index(path: Path) -> Any:
    for _ in range(RETRIES):
        with suppress(ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
        time.sleep(0.1)
    return json.loads(path.read_text(encoding="utf-8"))
