"""Training from a MONAI Label datastore: the studies without a label that belong to it, and where results go.

MONAI Label's ``monaibundle`` app replaces the records of training and validation by those of the studies whose label
is final. All other studies of the datastore are what a semi-supervised objective learns from beside them. They are
found from the labels' place, which is always ``STUDIES/labels/final/``; ``STUDIES/datastore_v2.json`` is the server's
own list of studies. ``labels/original`` holds what networks predicted and is never looked at.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts.data.checks import add_or_raise
from scripts.data.layouts.custom import IMAGE_SUFFIXES
from scripts.utils.licences import UNSTATED, inherited_licenses, unique_licenses, write_terms
from scripts.utils.provenance import read_record, write_record
from scripts.utils.tensors import load_tensors

__all__ = ["PublishWeights", "run_folder", "unlabeled_studies"]

logger = logging.getLogger(__name__)

INDEX = "datastore_v2.json"
FINAL = "final"
RETRIES = 10  # the server writes its index anew at every change, and a reader may come in between
TERMS = f"{UNSTATED}; ask the studies' owner before any use"


def unlabeled_studies(
    labeled: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]] = (),
    class_names: Mapping[str, str] | None = None,
) -> list[dict[str, str]]:
    """The records of a datastore's studies without a final label.

    Where every study is labelled, the training ones are returned once more without their labels: consistency is then
    learned on them, as FixMatch's authors do with all labelled images, and a method that asks for unlabelled images
    goes on working.

    3D Slicer numbers a label's voxels by the place of its segments, whatever they are called: without its first
    segment, the second one's voxels come as the first class. A label whose segments the server knows by name is
    therefore taken only if they are the classes in their order.

    Args:
        labeled: training records, with the paths of ``image`` and ``label``.
        validation: validation records; their images are never returned.
        class_names: name of each foreground class by its number as text, compared without regard to capitals.

    Returns:
        records with an absolute ``image`` alone, in the order of their names; none unless the labels lie in a
        datastore.

    Raises:
        ValueError: when the datastore's index cannot be read.
        FaultsError: when final labels have other segments than the classes; all of them.
    """
    root = _datastore(labeled)
    if root is None:
        return []
    images, segments = _studies(root)
    if class_names:
        _check_segments(segments, [class_names[number] for number in sorted(class_names, key=int)])
    known = {os.path.realpath(record["image"]) for record in (*labeled, *validation)}
    records = [{"image": image} for image in images if image not in known]
    logger.info(
        "MONAI Label datastore: learning from %d labelled and %d unlabelled studies, validating on %d.",
        len(labeled),
        len(records),
        len(validation),
    )
    if not records:
        logger.info("No study is without a label: the labelled training images also serve as unlabelled ones.")
        records = [{"image": str(record["image"])} for record in labeled]
    return records


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


class PublishWeights:
    """Handler that makes a finished training on a MONAI Label datastore the network that the server uses.

    The served file is replaced in one step, after the last epoch and by the first process only: a training that
    fails or is stopped leaves it as it was. The records of the run's weights say that they come from a datastore, with
    the terms of the weights that the training began with. On any other data the handler does nothing. Attach it after
    the handler that writes the run's weights.

    Args:
        run_dir: folder of the run with its ``model.pt``.
        target: the weights that are served, a ``model.pt``.
        data: training records.
        network: the network that is trained.
    """

    def __init__(self, run_dir: str, target: str, data: Sequence[Mapping[str, Any]], network: nn.Module) -> None:
        self.source = Path(run_dir) / "model.pt"
        self.target = Path(target)
        self.active = _datastore(data) is not None
        self.network = network
        # The configured data set is not what this network learns from.
        self.origin: dict[str, Any] = {
            "data": "custom",
            "split": "MONAI Label datastore",
            "split_sha256": None,
            "license": [TERMS],
        }

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        if self.active:
            engine.add_event_handler(Events.STARTED, self._remember_origin)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self._correct_records)
            engine.add_event_handler(Events.COMPLETED, self._correct_records)
            engine.add_event_handler(Events.COMPLETED, self._publish)

    def _remember_origin(self) -> None:
        """Weights that a training begins with pass their terms on to what it makes of them.

        MONAI Label loads any file of ``models/``, under whatever name: which one it was, the network itself tells.
        """
        state = self.network.state_dict()
        for path in sorted(self.target.parent.glob("*.pt")):
            record = read_record(path)
            if record is None:
                continue
            loaded = load_tensors(path)
            if state.keys() == loaded.keys() and all(torch.equal(v.cpu(), loaded[key]) for key, v in state.items()):
                self.origin["continues_sha256"] = record["sha256"]
                self.origin["license"] = unique_licenses(TERMS, *inherited_licenses(record))
                return

    def _correct_records(self, engine: Engine) -> None:
        """Also a stopped training leaves weights that somebody may put to use."""
        if getattr(engine.state, "rank", 0) != 0:
            return
        for path in self.source.parent.glob("*.pt"):
            if record := read_record(path):
                write_record(path, {**record, **self.origin})
        write_terms(self.source.parent, "studies of a MONAI Label datastore", self.origin["license"])

    def _publish(self, engine: Engine) -> None:
        if getattr(engine.state, "rank", 0) != 0:
            return
        self.target.parent.mkdir(parents=True, exist_ok=True)
        sizes = [(read_record(path) or {}).get("image_size") for path in (self.target, self.source)]
        served = (self.target, self.target.with_suffix(".json"), self.target.with_name("LICENSE.txt"))
        # All is copied before anything is replaced: weights and record follow each other within a moment.
        with TemporaryDirectory(dir=self.target.parent, prefix=".") as staging:
            copies = [shutil.copy(self.source.with_name(path.name), staging) for path in served]
            for copy, path in zip(copies, served, strict=True):
                os.replace(copy, path)
        logger.info("%s is now the network of %s.", self.target, self.source)
        if None not in sizes and sizes[0] != sizes[1]:
            # The server reads inference.json, and with it the size, once in its life.
            logger.warning("The slice size changed from %s to %s: restart the server, which keeps the old.", *sizes)


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


def _studies(root: Path) -> tuple[list[str], dict[str, list[str]]]:
    """Real paths of the images without a final label, and the names of the other studies' segments where known."""
    path = root / INDEX
    try:
        index = _read_index(path)
        folder = root / index["images_dir"]
        names, segments = [], {}
        for name, entry in sorted(index["objects"].items()):
            if FINAL not in entry["labels"]:
                names.append(f"{name}{entry['image']['ext']}")
                continue
            known = (entry["labels"][FINAL].get("info") or {}).get("label_info") or []
            if known and all("name" in segment for segment in known):
                segments[name] = [str(segment["name"]) for segment in known]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected MONAI Label's list of studies, found {error!r}.") from None
    images = [os.path.realpath(folder / name) for name in names if not name.startswith(".")]
    # a datastore may list formats that the preprocessing does not read
    return [image for image in images if image.lower().endswith(IMAGE_SUFFIXES) and os.path.isfile(image)], segments


def _read_index(path: Path) -> Any:
    for _ in range(RETRIES):
        with suppress(ValueError):
            return json.loads(path.read_text(encoding="utf-8"))
        time.sleep(0.1)
    return json.loads(path.read_text(encoding="utf-8"))


def _check_segments(segments: Mapping[str, Sequence[str]], expected: Sequence[str]) -> None:
    add_or_raise(
        [
            f"The final label of '{study}' has the segments {', '.join(names)}, expected {', '.join(expected)} in this "
            "order, also where one is empty: add what is missing in the viewer and submit the label again."
            for study, names in segments.items()
            if [name.casefold() for name in names] != [name.casefold() for name in expected]
        ],
        None,
    )
