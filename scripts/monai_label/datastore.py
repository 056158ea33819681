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
RETRIES = 10  # the server writes its index anew at every change, and a reader may come in between


class Studies:
    """What a training learns from: MONAI Label's records as they can be used, and all other studies of the datastore.

    A label counts by the names of its segments: those that a viewer lists with it, or those of the DICOM SEG that it
    was in an archive. Without names its values are the classes. A label whose segments are not the classes is left out
    with a warning that names the study; one that covers a part of its image's slices is padded with background.

    Where every study is labelled, the training ones count once more without their labels: consistency is then learned
    on them, as FixMatch's authors do with all labelled images.

    Args:
        labeled: training records, with the paths of ``image`` and ``label``.
        validation: validation records; their images are never unlabelled ones.
        cache_dir: folder for labels that had to be changed.
        class_names: name of each foreground class by its number as text; empty: nothing is known of names.
        class_synonyms: further names, see :class:`scripts.monai_label.segments.ClassTerms`.
        class_codes: codes of the classes.

    Attributes:
        root: the datastore's folder; None where the records belong to none, which are then left as they are.
        labeled: training records.
        validation: validation records.
        unlabeled: records with an absolute ``image`` alone, in the order of their names.
        left_out: one line for each label or study that is not used.
        counts: how many studies of which kind a training uses, in words; "" until :func:`training_slices` knows.
        begin: when this object was made, by the monotonic clock.

    Raises:
        ValueError: when the datastore's index cannot be read.
    """

    def __init__(
        self,
        labeled: Sequence[Mapping[str, Any]],
        validation: Sequence[Mapping[str, Any]] = (),
        cache_dir: str | Path = ".cache",
        class_names: Mapping[str, str] | None = None,
        class_synonyms: Mapping[str, Sequence[str]] | None = None,
        class_codes: Mapping[str, Mapping[str, str]] | None = None,
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
        self._folder = Path(cache_dir) / "labels"
        self.labeled, self.validation = (self._usable(records) for records in (self.labeled, self.validation))
        if not self.unlabeled:
            logger.info("No study is without a label: the labelled training images also serve as unlabelled ones.")
            self.unlabeled = [{"image": str(record["image"])} for record in self.labeled]

    def leave_out(self, faults: Sequence[str]) -> None:
        """Note what cannot be used, with a warning for each line."""
        for fault in faults:
            logger.warning("Left out: %s", fault)
        self.left_out += faults

    def _usable(self, records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records with labels of the classes on their images' grids; the others are left out."""
        usable = []
        for record in records:
            label = Path(record["label"])
            final = self._finals.get(os.path.realpath(label))
            study = final.study if final else label.name
            try:
                classes = self._classes(final) if final and self._terms else {}
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
            raise ValueError("nothing is known of its segments' names")
        classes = self._terms.classes(segments)
        missing = [name for number, name in self._terms.names.items() if segments and number not in classes.values()]
        if missing:
            logger.info("The final label of '%s' has no %s: learned as absent there.", final.study, ", ".join(missing))
        return classes


@dataclass(frozen=True)
class _Final:
    """What the index says of a final label.

    Attributes:
        study: its name.
        segments: as a viewer listed them; empty where it did not.
        archived: whether it came from an archive.
        folder: of the DICOM SEG that it was there, where it is at hand.
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
        data: MONAI Label's records, of account where they belong to no datastore.
        studies: made from them.
        validation: what is validated on.
        preprocessing: see :class:`scripts.data.SliceDataset`.
        channels: number of channels that the network takes.
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
        data: MONAI Label's records, of account where they belong to no datastore.
        studies: made from them.
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
    """Folder of a run: ``output_dir``, or for a MONAI Label datastore a new one inside it, named by the time.

    A server trains again and again, each time anew, and must not meet the run before.

    Args:
        output_dir: folder for results.
        data: training records.
    """
    if _datastore(data) is None:
        return str(output_dir)
    return str(Path(output_dir) / datetime.now().strftime("%Y%m%d-%H%M%S"))


def _datastore(records: Sequence[Mapping[str, Any]]) -> Path | None:
    """Root of the datastore that the records' labels lie in.

    The server resolves links, so a linked label is somewhere else; then the datastore is where its image lies.
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
    """Real paths of the images without a final label, and what is known of the final labels by their real paths."""
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
    # a datastore may list formats that the preprocessing does not read
    return [image for image in images if image.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(image)], finals


def _read_index(path: Path) -> Any:
    for _ in range(RETRIES):
        with suppress(ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
        time.sleep(0.1)
    return json.loads(path.read_text(encoding="utf-8"))
