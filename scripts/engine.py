"""The training engine: one trainer for every objective, checkpoints, and what surrounds them."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.handlers import DiskSaver, ProgressBar
from monai.engines import Evaluator, Trainer
from torch import Tensor, nn

from scripts.data import SemiSupervisedLoader
from scripts.errors import one_line
from scripts.methods import Objective

__all__ = [
    "RunCheckpoint",
    "SemiSupervisedTrainer",
    "TrainingProgress",
    "autocast_dtype",
    "flag",
    "guard_output",
    "poly_schedule",
]

logger = logging.getLogger(__name__)


def flag(value: bool | str) -> bool | str:
    """A switch from the command line, where ``--resume true`` arrives as the text "true"; other text is kept."""
    return {"true": True, "false": False}.get(str(value).lower(), value)


def autocast_dtype(device: torch.device | str, amp: bool | str) -> torch.dtype | None:
    """The dtype of mixed precision on a device, or None for float32 throughout.

    CUDA takes bfloat16, or float16 (with gradient scaling) where the card lacks it. A CPU takes bfloat16 only if it
    has instructions for it (AVX512-BF16 or AMX): without them PyTorch emulates it, many times slower than float32.
    """
    device = torch.device(device)
    if not flag(amp):
        return None
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        if any(probe is not None and probe() for probe in probes):
            return torch.bfloat16
        logger.info("This CPU has no bfloat16 instructions: training in float32.")
    return None


def poly_schedule(
    optimizer: torch.optim.Optimizer, total_iterations: int, power: float = 0.9
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate ``lr (1 - i / total)^power`` at iteration i, a closed form: it resumes at any iteration."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.0, 1 - i / total_iterations) ** power)


class SemiSupervisedTrainer(Trainer):
    """MONAI trainer that minimises an :class:`scripts.methods.Objective`.

    Every iteration begins by seeding PyTorch with a function of (seed, process, iteration), and the loader is a
    function of (seed, iteration) too: a resumed run needs no random state to go on exactly as it would have. The
    trainer's output is a list of one dict of floats, the objective's named losses.

    Args:
        device: where to train.
        max_epochs: epochs to train for.
        train_data_loader: yields batches of :class:`scripts.methods.Objective`'s form.
        method: the objective, or a DistributedDataParallel around it.
        optimizer: over the objective's parameters.
        lr_scheduler: stepped after every iteration.
        epoch_length: iterations per epoch; default one pass of the loader, i.e. over the unlabelled slices.
        seed: seed of views, dropout and CutMix.
        amp: mixed precision where the device has it, see :func:`autocast_dtype`.
        train_handlers: MONAI or Ignite handlers.

    Raises:
        FloatingPointError: in ``run``, before the step that would spoil the weights, when the loss is not finite.
    """

    def __init__(
        self,
        device: torch.device | str,
        max_epochs: int,
        train_data_loader: Iterable[Mapping[str, Tensor]],
        method: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
        epoch_length: int | None = None,
        seed: int = 0,
        amp: bool | str = False,
        train_handlers: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            non_blocking=True,
            decollate=False,
            handlers=train_handlers,
        )
        self.method = method
        self.objective = cast(Objective, getattr(method, "module", method))
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.seed = seed
        self.dtype = autocast_dtype(self.state.device, amp)
        self.grad_scaler = torch.amp.GradScaler(self.state.device.type, enabled=self.dtype is torch.float16)
        self.add_event_handler(Events.EPOCH_STARTED, self._align_loader)

    def _align_loader(self) -> None:
        """A resumed run goes on with the batch that comes next, not with the first."""
        cast(Any, self.data_loader).iteration = self.state.iteration

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Tensor]) -> list[dict[str, float]]:  # type: ignore[override]
        entropy = np.random.SeedSequence([self.seed, self.state.rank, self.state.iteration])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
        device = self.state.device
        batch = {
            key: value.to(device, non_blocking=self.non_blocking, memory_format=torch.channels_last)
            for key, value in batchdata.items()
        }
        self.method.train()
        self.optimizer.zero_grad(set_to_none=True)
        # Passes with and without gradient share one autocast: cached casts of weights may belong to the other kind.
        enabled = self.dtype is not None
        with torch.autocast(device.type, dtype=self.dtype, enabled=enabled, cache_enabled=False):
            losses: dict[str, Tensor] = self.method(batch)
        # One transfer for all of them, before the backward pass: a broken loss must not reach the weights.
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        output = dict(zip(losses, values, strict=True))
        if not math.isfinite(output["loss"]):
            raise FloatingPointError(
                f"The loss is not finite at iteration {self.state.iteration}: "
                + ", ".join(f"{name} {value:.4g}" for name, value in output.items())
                + ". The last checkpoint is intact; a lower learning rate or `--amp false` may help."
            )
        self.grad_scaler.scale(losses["loss"]).backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.objective.after_step()
        if self.method is not self.objective and self.state.iteration % self.state.epoch_length == 0:
            # Batch statistics are per process: before validation all take the first one's, whose weights are saved.
            for buffer in self.objective.buffers():
                dist.broadcast(buffer, 0)
        return [output]


class RunCheckpoint:
    """Writes a run's checkpoints and resumes from them. Attach it after the validation handler.

    - ``checkpoint.pt``, after every epoch: all that is needed to resume.
    - ``model.pt``: the network's weights alone, best by validation (the last ones if there is no validation).
    - ``model_last.pt``: the network's weights after the last epoch.

    Each file is written to a temporary name and renamed, by the first process only.

    Args:
        output_dir: folder of the run, created if need be.
        network: the deployed network.
        resume: ``False``: start anew. ``True``: go on from ``checkpoint.pt`` where there is one. A path: go on from
            that file.
        evaluator: the validation engine, whose best metric decides on ``model.pt``.

    Raises:
        ValueError: on start, if the file cannot be read, belongs to another protocol, objective or network, or has
            more epochs than are asked for.
    """

    name = "checkpoint.pt"

    def __init__(
        self, output_dir: str, network: nn.Module, resume: bool | str = False, evaluator: Evaluator | None = None
    ) -> None:
        self.output_dir = Path(output_dir)
        self.network = network
        self.resume = flag(resume)
        self.evaluator = evaluator

    def attach(self, engine: SemiSupervisedTrainer) -> None:
        """Register with the trainer."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _start(self, engine: SemiSupervisedTrainer) -> None:
        self.save = DiskSaver(str(self.output_dir), create_dir=True, require_empty=False)
        path = self.output_dir / self.name if isinstance(self.resume, bool) else Path(self.resume)
        if not self.resume:
            return
        if self.resume is True and not path.is_file():
            engine.logger.info(f"No {path} yet: starting anew.")
            return
        self._load(engine, path)
        engine.logger.info(f"Resumed from {path} after epoch {engine.state.epoch}.")

    def _load(self, engine: SemiSupervisedTrainer, path: Path) -> None:
        try:
            content = torch.load(path, map_location=engine.state.device, weights_only=True)
        except Exception as error:
            raise ValueError(f"{path}: cannot be read as a checkpoint: {one_line(error)}") from None
        parts = self._parts(engine)
        expected = {*parts, "state"}
        if not isinstance(content, dict) or set(content) != expected:
            found = sorted(content)[:6] if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path}: expected a checkpoint with {sorted(expected)}, found {found}.")
        state = content["state"]
        for name, value in _protocol(engine).items():
            if state.get(name) != value:
                raise ValueError(f"{path}: expected a run with {name} {value}, found {state.get(name)}.")
        if state["epoch"] > engine.state.max_epochs:
            raise ValueError(f"{path}: holds {state['epoch']} epochs, more than max_epochs {engine.state.max_epochs}.")
        try:
            for name, part in parts.items():
                part.load_state_dict(content[name])
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"{path}: does not fit the configured method and network: {one_line(error)}") from None
        engine.state.epoch, engine.state.iteration = state["epoch"], state["iteration"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]

    def _epoch(self, engine: SemiSupervisedTrainer) -> None:
        state = {
            **_protocol(engine),
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": float(self.evaluator.state.best_metric) if self.evaluator else -1.0,
            "best_metric_epoch": self._best_epoch(),
        }
        if self._best_epoch() == engine.state.epoch:
            self.save(self.network.state_dict(), "model.pt")
        content = {name: part.state_dict() for name, part in self._parts(engine).items()}
        self.save({**content, "state": state}, self.name)

    def _finish(self, engine: SemiSupervisedTrainer) -> None:
        self.save(self.network.state_dict(), "model_last.pt")
        if self._best_epoch() < 0:
            self.save(self.network.state_dict(), "model.pt")

    def _best_epoch(self) -> int:
        return int(self.evaluator.state.best_metric_epoch) if self.evaluator else -1

    @staticmethod
    def _parts(engine: SemiSupervisedTrainer) -> dict[str, Any]:
        parts = {"method": engine.objective, "optimizer": engine.optimizer, "grad_scaler": engine.grad_scaler}
        return parts if engine.lr_scheduler is None else {**parts, "lr_scheduler": engine.lr_scheduler}


def _protocol(engine: SemiSupervisedTrainer) -> dict[str, Any]:
    """What a resumed run must share with the run before it."""
    protocol = {
        "objective": type(engine.objective).__name__,
        "epoch_length": engine.state.epoch_length,
        "seed": engine.seed,
    }
    loader = engine.data_loader
    if isinstance(loader, SemiSupervisedLoader):
        protocol |= {
            "labelled slices": len(loader.dataset.labeled),
            "unlabelled slices": len(loader.dataset.unlabeled),
            "batch size": loader.batch_size,
            "processes": loader.world_size,
        }
    return protocol


def guard_output(output_dir: str, resume: bool | str) -> None:
    """Refuse to overwrite an earlier run, or to resume from nothing, before anything is written.

    Raises:
        FileNotFoundError: if ``resume`` names a file that is not there.
        FileExistsError: if ``output_dir`` holds a run's checkpoint and ``resume`` is False or names another file.
    """
    path = Path(output_dir) / RunCheckpoint.name
    resume = flag(resume)
    if isinstance(resume, str) and not Path(resume).is_file():
        raise FileNotFoundError(f"resume: expected a checkpoint of a run, found no file at '{resume}'.")
    elsewhere = isinstance(resume, str) and Path(resume).resolve() != path.resolve()
    if path.exists() and (not resume or elsewhere):
        raise FileExistsError(
            f"{path}: an earlier run stands here. Continue it with --resume true, or choose another --output_dir."
        )


class TrainingProgress(ProgressBar):
    """Progress bar with the losses, on a terminal only."""

    def __init__(self) -> None:
        super().__init__(persist=True, disable=None)

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        """Register with the trainer."""
        super().attach(engine, output_transform=lambda output: {k: v for k, v in output[0].items() if "loss" in k})
