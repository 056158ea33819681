"""The training engine: one trainer for all objectives, mixed precision and the learning rate's schedule."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from monai.engines import IterationEvents, SupervisedTrainer
from torch import Tensor, nn

from scripts.draws import Draws
from scripts.methods import Objective
from scripts.static_step import CaptureError, Losses, StaticSteps
from scripts.utils.memory import freed_memory_kept
from scripts.utils.options import check_switches, check_values

__all__ = [
    "NOT_FINITE",
    "SemiSupervisedTrainer",
    "autocast_dtype",
    "flag",
    "poly_schedule",
]

logger = logging.getLogger(__name__)

NOT_FINITE = (
    "What an earlier epoch saved is intact: `--resume True --amp False` may get past this point; if not, start anew "
    "with a lower learning rate."
)
"""Advice for a training whose loss or weights are not finite."""


def flag(value: bool | str) -> bool | str:
    """A switch from the command line, where ``--resume true`` is the text "true"; other text is returned as it is."""
    return {"true": True, "false": False}.get(str(value).lower(), value)


def autocast_dtype(device: torch.device | str, amp: bool | str) -> torch.dtype | None:
    """The dtype of mixed precision on a device, or None for float32 throughout.

    CUDA uses bfloat16, or float16 (with gradient scaling) if the card lacks it. A CPU uses bfloat16 only if it has
    instructions for it (AVX512-BF16 or AMX); PyTorch's emulation is many times slower than float32.

    Raises:
        ValueError: if ``amp`` is not True or False, also as text.
    """
    device = torch.device(device)
    check_switches(amp=flag(amp))
    if not flag(amp):
        return None
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu":
        probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        if any(probe is not None and probe() for probe in probes):
            return torch.bfloat16
        logger.info("This CPU has no bfloat16 instructions: computing in float32.")
    return None


def poly_schedule(
    optimizer: torch.optim.Optimizer, total_iterations: int, power: float = 0.9
) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rate ``lr (1 - i / total)^power`` at iteration i; the closed form resumes at any iteration."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: max(0.0, 1 - i / total_iterations) ** power)


class SemiSupervisedTrainer(SupervisedTrainer):
    """MONAI trainer that minimises an :class:`scripts.methods.Objective`.

    Every iteration first seeds PyTorch with a function of (seed, process, iteration), and the loader is a function of
    (seed, iteration) too: a resumed run equals an uninterrupted one without storing a random state. The trainer's
    output is a list of one dict of floats, the objective's named losses. Of MONAI's ``IterationEvents``,
    ``FORWARD_COMPLETED`` and ``LOSS_COMPLETED`` are fired together: an objective computes predictions and losses in one
    call.

    Args:
        device: where to train.
        max_epochs: epochs to train for.
        train_data_loader: yields batches as :class:`scripts.methods.Objective` expects them.
        method: the objective, or a DistributedDataParallel around it; moved to ``device``, in channels_last format.
        optimizer: over the objective's parameters.
        lr_scheduler: stepped after every iteration.
        epoch_length: iterations per epoch; default one pass of the loader, i.e. over the unlabelled slices.
        seed: seed of views, dropout and CutMix.
        amp: mixed precision where the device has it, see :func:`autocast_dtype`.
        supervised_share: share of the training, at its start, that uses labelled images only. Pseudo-labels of an
            untrained network teach that everything is background, and a supervised step costs less than half of
            FixMatch's.
        train_handlers: MONAI or Ignite handlers.
        compile: on a GPU, compile the objective's steps and replay each phase's as one CUDA graph, see
            :class:`scripts.static_step.StaticSteps`. Objectives and settings that cannot be captured train as without
            it. The events of an iteration then come together, and the trainer's output is that of the step before,
            but for the first and the last step of an epoch: reading a step's own would wait for it.
        total_iterations: length of the objective's schedules if this training is a part of a longer one; default
            ``max_epochs * epoch_length``.

    Attributes:
        network: the deployed network, which MONAI's federated client exchanges.

    Raises:
        ValueError: if ``max_epochs`` or ``epoch_length`` is not a positive whole number, or for ``compile`` on a device
            other than a GPU.
        FloatingPointError: in ``run``, if the loss is not finite; the weights are those before that step.
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
        supervised_share: float = 0.0,
        compile: bool | str = False,  # noqa: A002 - the config's word
        train_handlers: Sequence[Any] | None = None,
        total_iterations: int | None = None,
    ) -> None:
        check_values(max_epochs=max_epochs, **({} if epoch_length is None else {"epoch_length": epoch_length}))
        objective = cast(Objective, getattr(method, "module", method))
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=objective.network,
            optimizer=optimizer,
            loss_function=objective.supervised_loss,
            epoch_length=epoch_length,
            non_blocking=True,
            decollate=False,
            train_handlers=train_handlers,
        )
        self.method: nn.Module = cast(Any, method).to(self.state.device, memory_format=torch.channels_last)
        self.objective = objective
        self.total_iterations = total_iterations
        self.lr_scheduler = lr_scheduler
        self.seed = seed
        if not 0 <= supervised_share <= 1:
            raise ValueError(f"supervised_share: expected a share in [0, 1], found {supervised_share!r}.")
        self.supervised_share = supervised_share
        self.dtype = autocast_dtype(self.state.device, amp)
        check_switches(compile=flag(compile))
        self.static: StaticSteps | None = None
        self.pending: Losses | None = None
        self.compile = bool(flag(compile))
        if self.compile and self.state.device.type != "cuda":
            raise ValueError(f"compile: expected False on {self.state.device.type}, where it makes steps slower.")
        self.grad_scaler = torch.amp.GradScaler(self.state.device.type, enabled=self.dtype is torch.float16)
        self.add_event_handler(Events.STARTED, self._tell_length)
        self.add_event_handler(Events.STARTED, self._prepare_static)
        self.add_event_handler(Events.EPOCH_STARTED, self._align_loader)

    def run(self) -> None:  # type: ignore[override]
        """Train; on a CPU with :func:`scripts.utils.memory.freed_memory_kept`."""
        with freed_memory_kept(self.state.device):
            super().run()

    def _tell_length(self) -> None:
        """Set the length of the objective's own schedules."""
        whole = cast(int, self.state.max_epochs) * cast(int, self.state.epoch_length)
        total = self.total_iterations or whole
        self.objective.total_iterations = total
        self.objective.supervised_iterations = round(self.supervised_share * total)

    def _align_loader(self) -> None:
        """Continue a resumed run with the next batch, not with the first."""
        cast(Any, self.data_loader).iteration = self.state.iteration

    def _prepare_static(self) -> None:
        """Make what captures steps, where it is asked for and possible."""
        if self.compile and self.static is None:
            reason = StaticSteps.obstacle(self.objective, self.optimizer)
            if self.method is not self.objective:
                reason = "several processes train together"
            elif self.grad_scaler.is_enabled():
                reason = "float16 scales its gradients on the host"
            if reason is None:
                self.static = StaticSteps(self.objective, self.optimizer, self._autocast)
            else:
                logger.info("Steps are not captured: %s.", reason)

    def _autocast(self) -> torch.autocast:
        # Passes with and without gradient share one autocast: a cached cast of a weight may lack its gradient.
        enabled = self.dtype is not None
        return torch.autocast(self.state.device.type, dtype=self.dtype, enabled=enabled, cache_enabled=False)

    def _iteration(self, engine: Engine, batchdata: Mapping[str, Tensor]) -> list[dict[str, float]]:  # type: ignore[override]
        entropy = np.random.SeedSequence([self.seed, self.state.rank, self.state.iteration])
        # Two streams: dropout's, from the device's generator, and that of the views.
        first, second = (int(word) >> 1 for word in entropy.generate_state(2, np.uint64))
        torch.manual_seed(first)
        generator = torch.Generator().manual_seed(second)
        self.method.train()
        self.objective.iteration = self.state.iteration - 1
        if self.static is not None and self.static.takes(self.state.iteration):
            output = self._replay(self.static, batchdata, generator)
        else:
            output = self._step(batchdata, generator)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        if self.method is not self.objective and self.state.iteration % self.state.epoch_length == 0:
            # Batch statistics are per process: before validation all copy those of the first one, whose weights are
            # saved.
            for buffer in self.objective.buffers():
                dist.broadcast(buffer, 0)
        return [output]

    def _step(self, batchdata: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, float]:
        device = self.state.device
        batch = {
            key: value.to(device, non_blocking=self.non_blocking, memory_format=torch.channels_last)
            for key, value in batchdata.items()
        }
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.draws = Draws(device, generator=generator)
        self.objective.progress = torch.full((), self.objective.passed(), device=device)
        try:
            with self._autocast():
                losses: dict[str, Tensor] = self.method(batch)
        finally:
            self.objective.draws = self.objective.progress = None
        # An objective computes predictions and losses in one call.
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        # One transfer for all losses, before the backward pass: a loss that is not finite must not reach the weights.
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        output = self._checked(Losses(self.state.iteration, [*losses], values))
        self.grad_scaler.scale(losses["loss"]).backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.objective.after_step()
        return output

    def _replay(
        self, static: StaticSteps, batchdata: Mapping[str, Tensor], generator: torch.Generator
    ) -> dict[str, float]:
        """A captured step; returns the losses of the step before it, whose end the host need not wait for."""
        try:
            losses = static(batchdata, generator, self.state.iteration)
        except CaptureError as error:
            logger.warning("Steps are not captured, the training goes on without: %s", error)
            self.static, self.compile = None, False
            if self.pending is not None:
                self._checked(self.pending)
            return self._step(batchdata, generator)
        before, self.pending = self.pending, losses
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        for event in (
            IterationEvents.FORWARD_COMPLETED,
            IterationEvents.LOSS_COMPLETED,
            IterationEvents.BACKWARD_COMPLETED,
        ):
            self.fire_event(event)
        output = self._checked(before or losses)
        if self.state.iteration % self.state.epoch_length == 0:
            output, self.pending = self._checked(losses), None
        return output

    @staticmethod
    def _checked(losses: Losses) -> dict[str, float]:
        """The losses, if what is minimised is finite."""
        output = losses.read()
        if not math.isfinite(output["loss"]):
            raise FloatingPointError(
                f"The loss is not finite at iteration {losses.iteration}: "
                + ", ".join(f"{name} {value:.4g}" for name, value in output.items())
                + f". {NOT_FINITE}"
            )
        return output
