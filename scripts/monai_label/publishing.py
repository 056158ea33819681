"""Publishing: a training's network replaces the one that a MONAI Label server uses, unless it is worse."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts.handlers.weights import load_network_weights
from scripts.monai_label.datastore import Studies
from scripts.utils.licences import UNSTATED, inherited_licenses, unique_licenses, write_terms
from scripts.utils.provenance import file_digest, read_record, write_record
from scripts.utils.tensors import load_tensors

__all__ = ["PublishWeights", "network_files"]

logger = logging.getLogger(__name__)

TERMS = f"{UNSTATED}; ask the studies' owner before any use"
METRIC = "val_mean_dice"
# MONAI Label serves the file with the shortest name.
PREVIOUS, CANDIDATE = "model_previous.pt", "model_candidate.pt"
LICENSES = {PREVIOUS: "LICENSE_previous.txt", CANDIDATE: "LICENSE_candidate.txt"}


def network_files(folder: str | Path) -> list[str]:
    """Names of the networks that a viewer can choose from, the served one first.

    A server lists them once, at its start, so the list includes files that later trainings will write. A request for a
    missing one is answered by the served network.

    Args:
        folder: folder of the weights.
    """
    found = {path.name for path in Path(folder).glob("*.pt")}
    return sorted({"model.pt", PREVIOUS, CANDIDATE, *found}, key=lambda name: (len(name), name))


class PublishWeights:
    """Handler that replaces a MONAI Label server's network by the trained one, unless it is worse.

    The served network is evaluated on the validation studies before the training. After the last epoch the new one
    replaces it, in one step, unless its mean Dice on the same studies is lower; studies that either network was trained
    on are excluded. The replaced network becomes ``model_previous.pt``. After every epoch the run's weights are copied
    to ``model_candidate.pt``, which remains if the training is stopped or its network is worse. Without a MONAI Label
    datastore the handler does nothing. Attach it after the handler that writes the run's weights.

    Args:
        run_dir: folder of the run with its ``model.pt``.
        target: the served weights, a ``model.pt``.
        studies: the training data.
        network: the trained network.
        evaluator: evaluates on the validation studies; None: no comparison.
        class_names: name of each foreground class by its number as text.
    """

    def __init__(
        self,
        run_dir: str,
        target: str,
        studies: Studies,
        network: nn.Module,
        evaluator: Any = None,
        class_names: Mapping[str, str] | None = None,
    ) -> None:
        self.source = Path(run_dir) / "model.pt"
        self.target = Path(target)
        self.studies = studies
        self.network = network
        self.evaluator: Any = evaluator if evaluator is not None and len(studies.validation) else None
        self.class_names = [name for _, name in sorted((class_names or {}).items(), key=lambda item: int(item[0]))]
        # The configured data set is not this network's training data.
        self.origin: dict[str, Any] = {
            "data": "custom",
            "split": "MONAI Label datastore",
            "split_sha256": None,
            "license": [TERMS],
        }
        self.served: torch.Tensor | None = None
        self.best: torch.Tensor | None = None
        self.compared: list[bool] = []

    def attach(self, engine: Engine) -> None:
        """Register with the trainer."""
        if self.studies.root is None:
            return
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: Engine) -> None:
        learned = {_digest(record) for record in self.studies.labeled}
        learned |= self._remember_origin()
        self.origin["labeled_sha256"] = sorted(learned)
        if self.evaluator is None:
            logger.info("No validation study: the new network will not be compared.")
            return
        learned |= {*_learned(read_record(self.target))}
        self.compared = [_digest(record) not in learned for record in self.studies.validation]
        if not any(self.compared):
            logger.info("A network was trained on every validation study: they cannot serve for a comparison.")
            return
        self._score_served()

    def _remember_origin(self) -> set[str]:
        """Take over the licences and training studies of the initial weights.

        MONAI Label loads any file of ``models/``; the network's weights tell which one it was.
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
                return {*_learned(record)}
        return set()

    def _score_served(self) -> None:
        state = {name: value.clone() for name, value in self.network.state_dict().items()}
        try:
            load_network_weights(self.network, self.target)
            self.evaluator.run()
            self.served = self._scores()
            logger.info("Served network on the validation studies: %s", self._text(self.served))
        except (FileNotFoundError, ValueError) as error:
            logger.info("The served network cannot be compared: %s", error)
        finally:
            self.network.load_state_dict(state)
            # restore the state before the evaluator's run
            self.evaluator.state.best_metric, self.evaluator.state.best_metric_epoch = -1, -1
            self.evaluator.state.epoch = 0

    def _scores(self) -> torch.Tensor:
        """Dice ``[classes]`` of the evaluator's last run, mean over the compared studies."""
        cases = torch.as_tensor(self.evaluator.state.metric_details[METRIC]).float()  # of all processes
        rows = torch.tensor(self.compared).repeat(len(cases) // len(self.compared))
        return torch.nanmean(cases[rows] if len(rows) == len(cases) else cases, dim=0)

    def _text(self, scores: torch.Tensor) -> str:
        numbers = [str(number) for number in range(1, len(scores) + 1)]
        names = self.class_names if len(self.class_names) == len(scores) else numbers
        parts = [f"{name} {score:.3f}" for name, score in zip(names, scores.tolist(), strict=True)]
        return f"Dice {', '.join(parts)}, mean {scores.mean():.3f}"

    def _epoch(self, engine: Engine) -> None:
        if self.evaluator is not None and self.evaluator.state.epoch == engine.state.epoch and any(self.compared):
            scores = self._scores()
            logger.info("Epoch %d of %s: %s", engine.state.epoch, engine.state.max_epochs, self._text(scores))
            if self.evaluator.state.best_metric_epoch == engine.state.epoch:
                self.best = scores
        if getattr(engine.state, "rank", 0) == 0:
            self._correct_records()
            self._copy(self.source, self.target.with_name(CANDIDATE))

    def _finish(self, engine: Engine) -> None:
        if getattr(engine.state, "rank", 0) != 0:
            return
        self._correct_records()
        worse = (
            self.best is not None and self.served is not None and float(self.best.mean()) < float(self.served.mean())
        )
        if self.best is not None and self.served is not None:
            logger.info("Served network: %s. New network: %s.", self._text(self.served), self._text(self.best))
        else:
            logger.info("The new network was not compared.")
        if worse:
            self._copy(self.source, self.target.with_name(CANDIDATE))
            logger.warning("The new network is worse: the served one is kept, the new one is %s.", CANDIDATE)
        else:
            self._publish()
        logger.info("Ended at epoch %d after %s.", engine.state.epoch, self.studies.counts)
        for fault in self.studies.left_out:
            logger.warning("Left out: %s", fault)

    def _correct_records(self) -> None:
        """Copy the weights after every epoch, so that a stopped training leaves usable ones."""
        for path in self.source.parent.glob("*.pt"):
            if record := read_record(path):
                write_record(path, {**record, **self.origin})
        write_terms(self.source.parent, "studies of a MONAI Label datastore", self.origin["license"])

    def _publish(self) -> None:
        sizes = [(read_record(path) or {}).get("image_size") for path in (self.target, self.source)]
        if self.target.is_file():
            self._copy(self.target, self.target.with_name(PREVIOUS))
        self._copy(self.source, self.target)
        candidate = self.target.with_name(CANDIDATE)
        for path in (candidate, candidate.with_suffix(".json"), candidate.with_name(LICENSES[CANDIDATE])):
            path.unlink(missing_ok=True)
        logger.info("%s is now the network of %s; the previous one is %s.", self.target, self.source, PREVIOUS)
        if None not in sizes and sizes[0] != sizes[1]:
            # The server reads inference.json, including the size, once at its start.
            logger.warning(
                "The slice size changed from %s to %s: restart the server, which still uses the old one.", *sizes
            )

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        """Copy weights with their record and terms: all are copied first, then renamed together."""
        if not source.is_file():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        names = [_files(path) for path in (source, target)]
        with TemporaryDirectory(dir=target.parent, prefix=".") as staging:
            pairs = [(a, b) for a, b in zip(*names, strict=True) if a.is_file()]
            copies = [shutil.copyfile(a, Path(staging, b.name)) for a, b in pairs]
            for copy, (_, path) in zip(copies, pairs, strict=True):
                os.replace(copy, path)


def _files(weights: Path) -> tuple[Path, Path, Path]:
    """Weights, their record and their terms."""
    return weights, weights.with_suffix(".json"), weights.with_name(LICENSES.get(weights.name, "LICENSE.txt"))


def _digest(record: Mapping[str, Any]) -> str:
    """An identifier of a study that does not contain its name."""
    return file_digest(record["image"])[:16]


def _learned(record: Mapping[str, Any] | None) -> Sequence[str]:
    """The labelled training studies of weights, see :func:`_digest`; none if they are not recorded."""
    learned = (record or {}).get("labeled_sha256")
    return [str(entry) for entry in learned] if isinstance(learned, list) else []
