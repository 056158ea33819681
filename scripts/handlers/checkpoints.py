"""Checkpoints of a run: written after every epoch, resumed from, and guarded against another run."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from ignite.engine import Events
from monai.engines import Evaluator
from torch import nn

from scripts.data import SemiSupervisedLoader
from scripts.engine import NOT_FINITE, SemiSupervisedTrainer, flag
from scripts.handlers.resume import claim, load_parts, read_checkpoint
from scripts.methods import Objective
from scripts.utils.files import check_writable, replacing, sweep
from scripts.utils.processes import from_first, gathered
from scripts.utils.provenance import code_version, file_digest, is_synthetic, write_record
from scripts.utils.tensors import not_finite, save_tensors

__all__ = ["RunCheckpoint", "data_protocol", "guard_output", "plain_options", "run_settings"]


class RunCheckpoint:
    """Writes a run's checkpoints and resumes from them. Attach it after the validation handler.

    - ``checkpoint.pt``, after every epoch: all that is needed to resume.
    - ``model.pt``: the network's weights, best by validation (the last ones without validation). A run that resumes
      from another folder copies that folder's ``model.pt``.
    - ``model_last.pt``: the network's weights after the last epoch.
    - ``model.json`` and ``model_last.json``: the provenance of these weights, see :mod:`scripts.utils.provenance`.

    The first process alone writes. It locks the folder until the training is complete and removes the temporary files
    of a run that was killed.

    MONAI's ``CheckpointSaver`` does not serve here: it opens Ignite's ``DiskSaver`` with ``atomic=False`` and so writes
    over the only checkpoint in place, an interval checkpoint cannot have a fixed name, it has no hook for the record
    that belongs to the weights, and it does not save the protocol that a resumed run must match.

    Args:
        output_dir: folder of the run, created if missing.
        network: the deployed network.
        resume: ``False``: start a new run. ``True``: resume from ``checkpoint.pt`` if there is one. A path: resume from
            this file.
        evaluator: the validation engine, whose best metric selects ``model.pt``.
        data: the data's entries in the records, see :func:`scripts.data.description.describe_data`.
        inference: the options of inference in the records, see :func:`scripts.utils.provenance.trained_options`.

    Raises:
        ValueError: on start, if the checkpoint cannot be read, is damaged, belongs to another protocol, objective or
            network, or has more epochs than requested.
        FileExistsError: on start, if another process trains in the folder.
        FloatingPointError: after an epoch, before saving, if the weights are not finite.
    """

    name = "checkpoint.pt"

    def __init__(
        self,
        output_dir: str,
        network: nn.Module,
        resume: bool | str = False,
        evaluator: Evaluator | None = None,
        data: Mapping[str, Any] | None = None,
        inference: Mapping[str, Any] | None = None,
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.resume = flag(resume)
        self.evaluator = evaluator
        self.data = {**(data or {}), **(inference or {})}
        self.chosen = _chosen(data or {}, inference or {})
        self.trained_by: dict[str, list[str]] = {}

    def attach(self, engine: SemiSupervisedTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_STARTED, self._note_current)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: SemiSupervisedTrainer) -> None:
        if engine.state.rank == 0:
            self.lock = claim(self.output_dir)
            sweep(self.output_dir)
        # read at the start: a commit during the training does not change the running code
        precision = str(engine.dtype or torch.float32).removeprefix("torch.")
        self.current = {"code": code_version(), "precision": precision}
        _check_agreement(engine, self.current)
        path = self.output_dir / self.name if isinstance(self.resume, bool) else Path(self.resume)
        if not self.resume:
            return
        if self.resume is True and not from_first(path.is_file):
            engine.logger.info(f"No {path} yet: starting a new run.")
            return
        self.restore(engine, path, cast(int, engine.state.max_epochs))
        engine.logger.info(f"Resumed from {path} after epoch {engine.state.epoch}.")

    def _note_current(self) -> None:
        """A resumed run may have several code versions and precisions; a complete run gets no more."""
        for name, value in self.current.items():
            self.trained_by[name] = list(dict.fromkeys([*self.trained_by.get(name, []), value]))

    def restore(self, engine: SemiSupervisedTrainer, path: Path, max_epochs: int | None = None) -> None:
        """Restore a trainer from a checkpoint; the first process reads it for all.

        Args:
            engine: the trainer, built like the checkpoint's.
            path: the checkpoint.
            max_epochs: length of the training, compared with the checkpoint's; default: not compared.

        Raises:
            ValueError: see the class.
        """
        parts = self._parts(engine)
        content = from_first(lambda: read_checkpoint(path, parts, torch.device("cpu")))
        state = content["state"]
        for name, value in {**engine.objective.former_settings, **_protocol(engine), **self.chosen}.items():
            if state.get(name, value) != value:  # a newer option is not in the file
                raise ValueError(f"{path}: expected a run with {name} {value}, found {state[name]}.")
        if max_epochs is not None and state["epoch"] > max_epochs:
            raise ValueError(f"{path}: holds {state['epoch']} epochs, more than max_epochs {max_epochs}.")
        if max_epochs is not None and state["max_epochs"] != max_epochs:
            engine.logger.warning(
                f"{path}: started for {state['max_epochs']} epochs: learning rate and ramps now follow "
                f"{max_epochs}, unlike in any uninterrupted run."
            )
        load_parts(path, parts, content)
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        self.trained_by = state.get("trained_by", {name: ["unknown"] for name in ("code", "precision")})
        if self.evaluator is not None and from_first(
            lambda: self._bring_best(engine, path, state["best_metric_epoch"])
        ):
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]

    def _bring_best(self, engine: SemiSupervisedTrainer, path: Path, epoch: int) -> bool:
        """Copy the best network so far from the checkpoint's folder to this run's; True if it exists now."""
        best, there = self.output_dir / "model.pt", path.with_name("model.pt")
        if epoch < 0 or best.is_file():
            return True
        if not there.is_file():
            engine.logger.warning(f"{there}: the best network so far is missing; the best from here on will be kept.")
            return False
        for file in (there.with_suffix(".json"), there):
            if file.is_file():
                with replacing(self.output_dir / file.name) as temporary:
                    shutil.copyfile(file, temporary)
        return True

    def _epoch(self, engine: SemiSupervisedTrainer) -> None:
        if lost := not_finite(engine.objective.state_dict()):
            raise FloatingPointError(f"After epoch {engine.state.epoch} {lost} is not finite. {NOT_FINITE}")
        state = {
            **_protocol(engine),
            **self.chosen,
            "trained_by": self.trained_by,
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "max_epochs": engine.state.max_epochs,
            "best_metric": float(self.evaluator.state.best_metric) if self.evaluator else -1.0,
            "best_metric_epoch": self._best_epoch(),
        }
        if self._best_epoch() == engine.state.epoch:
            self._save_network(engine, "model.pt", {"validation_dice": state["best_metric"]})
        elif self._best_epoch() < 0:
            self._save_network(engine, "model.pt", {})
        content = {name: part.state_dict() for name, part in self._parts(engine).items()}
        if engine.state.rank == 0:
            save_tensors({**content, "state": state}, self.output_dir / self.name)

    def _finish(self, engine: SemiSupervisedTrainer) -> None:
        if self._best_epoch() < 0:
            self._save_network(engine, "model.pt", {})
        self._save_network(engine, "model_last.pt", {})  # written last: marks a complete run
        if engine.state.rank == 0:
            self.lock.release()

    def _save_network(self, engine: SemiSupervisedTrainer, name: str, result: dict[str, Any]) -> None:
        if engine.state.rank == 0:
            save_tensors(self.network.state_dict(), self.output_dir / name)
            trained_by = {key: ", then ".join(values) for key, values in self.trained_by.items()}
            write_record(self.output_dir / name, {**self.data, **_training(engine), **trained_by, **result})

    def _best_epoch(self) -> int:
        return int(self.evaluator.state.best_metric_epoch) if self.evaluator else -1

    @staticmethod
    def _parts(engine: SemiSupervisedTrainer) -> dict[str, Any]:
        parts = {"method": engine.objective, "optimizer": engine.optimizer, "grad_scaler": engine.grad_scaler}
        return parts if engine.lr_scheduler is None else {**parts, "lr_scheduler": engine.lr_scheduler}


def _protocol(engine: SemiSupervisedTrainer) -> dict[str, Any]:
    """The settings that a resumed run must share with its checkpoint."""
    protocol = {
        "objective": type(engine.objective).__name__,
        "epoch_length": engine.state.epoch_length,
        "seed": engine.seed,
        "learning rate": engine.optimizer.defaults["lr"],
        "optimizer": type(engine.optimizer).__name__,
        **{f"optimizer {name}": value for name, value in _plain(engine.optimizer.defaults).items() if name != "lr"},
        **run_settings(engine.objective),
    }
    loader = engine.data_loader
    return protocol | data_protocol(loader) if isinstance(loader, SemiSupervisedLoader) else protocol


def _chosen(data: Mapping[str, Any], inference: Mapping[str, Any]) -> dict[str, Any]:
    """The choice of cases and the preprocessing that a resumed run must share with its checkpoint.

    With as many slices as before, other cases would go unnoticed, and former validation cases would be trained on.
    """
    chosen: dict[str, Any] = {}
    if data:
        chosen = {"splits or datalist of SHA-256": data.get("split_sha256"), "fold": data.get("fold", 0)}
    return chosen | {name: inference[name] for name in ("pixel_spacing", "percentiles") if name in inference}


def _check_agreement(engine: SemiSupervisedTrainer, current: Mapping[str, str]) -> None:
    """Refuse processes with different data, code or options.

    Raises:
        ValueError: in all processes, naming the first difference.
    """
    own = {**_protocol(engine), **current}
    if isinstance(engine.data_loader, SemiSupervisedLoader):
        # a cached volume's name is the digest of its files
        names = sorted(volume.image_file.name for volume in engine.data_loader.dataset.volumes)
        own["data"] = hashlib.sha256("".join(names).encode()).hexdigest()[:12]
    first, *others = gathered(own)
    for number, other in enumerate(others, start=1):
        for name in first.keys() | other.keys():
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"Process {number} trains with {name} {other.get(name)}, the first one with {first.get(name)}: "
                    "data, code and options must be the same on every machine."
                )


def data_protocol(loader: SemiSupervisedLoader) -> dict[str, Any]:
    """The properties of the training data that a resumed run must share with its checkpoint.

    The names are those in the checkpoint's state, also in older checkpoints.
    """
    return {
        "labelled slices": len(loader.dataset.labeled),
        "unlabelled slices": len(loader.dataset.unlabeled),
        "batch size": loader.batch_size,
        "processes": loader.world_size,
        "image size": loader.dataset.volumes[0].shape[-1],
        "slice axis": loader.dataset.slice_axis,
    }


def run_settings(objective: Objective) -> dict[str, Any]:
    """The options of an objective and its parts (views, network, teacher ...), stored as attributes."""
    ids = {"weak": "weak_view", "strong": "strong_view"}
    parts = {"": objective, **{f"{ids.get(name, name)} ": part for name, part in objective.named_children()}}
    return {prefix + name: value for prefix, part in parts.items() for name, value in plain_options(part).items()}


def plain_options(part: nn.Module) -> dict[str, Any]:
    """The options of a module: its attributes that are numbers, words and tuples and that training does not change."""
    return _plain(vars(part))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that are options: numbers, texts and tuples that training does not change."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (bool, int, float, str, tuple))
        and not name.startswith("_")
        and name not in ("training", "iteration", "total_iterations", "supervised_iterations")
    }


def _training(engine: SemiSupervisedTrainer) -> dict[str, Any]:
    """Provenance of the current weights, for their record."""
    objective, loader = engine.objective, engine.data_loader
    record: dict[str, Any] = {"method": type(objective).__name__, "network": type(objective.network).__name__}
    if isinstance(fusion := getattr(objective, "fusion", None), nn.Module):
        record["fusion"] = type(fusion).__name__
    record |= {
        "settings": run_settings(objective),
        "learning_rate": engine.optimizer.defaults["lr"],
        "seed": engine.seed,
        "iteration": engine.state.iteration,
        "iterations": cast(int, engine.state.max_epochs) * cast(int, engine.state.epoch_length),
    }
    if isinstance(loader, SemiSupervisedLoader):
        records = loader.dataset.data
        labeled = [item.get("case", item["image"]) for item in records if "label" in item]
        unlabeled = [item.get("case", item["image"]) for item in records if "label" not in item]
        record |= {
            "labeled_cases": len(set(labeled)),
            "labeled_slices": len(loader.dataset.labeled),
            "unlabeled_cases": len(set(unlabeled)),
            "unlabeled_slices": len(loader.dataset.unlabeled),
            "batch_size": loader.batch_size,
            "processes": loader.world_size,
            "image_size": loader.dataset.volumes[0].shape[-1],
            "synthetic": is_synthetic(records[0]["image"]),
        }
    return record


def guard_output(output_dir: str, resume: bool | str) -> None:
    """Refuse to overwrite an earlier run, to resume without a checkpoint or to share a folder, before any work.

    Raises:
        WriteError: if nothing can be written to the folder.
        FileNotFoundError: if ``resume`` names a missing file.
        FileExistsError: if another process trains in ``output_dir``; if it contains a checkpoint, or weights other than
            those of the resumed run, and ``resume`` is False or names another file.
    """
    if os.environ.get("RANK", "0") != "0":
        return  # only the first of torchrun's processes writes; they are not connected yet
    path, weights = Path(output_dir) / RunCheckpoint.name, Path(output_dir) / "model.pt"
    resume = flag(resume)
    if isinstance(resume, str) and not Path(resume).is_file():
        raise FileNotFoundError(f"resume: expected a checkpoint of a run, found no file at '{resume}'.")
    elsewhere = isinstance(resume, str) and Path(resume).resolve() != path.resolve()
    if path.exists() and (not resume or elsewhere):
        raise FileExistsError(
            f"{path}: an earlier run is in this folder. Continue it with --resume True, or choose another --output_dir."
        )
    # A run that was killed before its first checkpoint may already have copied its best network.
    brought = Path(str(resume)).with_name("model.pt")
    if weights.exists() and (not resume or (elsewhere and not _equal(weights, brought))):
        raise FileExistsError(f"{weights}: training would replace these weights. Choose another --output_dir.")
    check_writable(output_dir)
    if Path(output_dir).is_dir():
        claim(output_dir).release()


def _equal(file: Path, other: Path) -> bool:
    return other.is_file() and file_digest(file) == file_digest(other)
