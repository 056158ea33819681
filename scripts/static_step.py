"""Training steps on tensors with fixed addresses, so that one CUDA graph can record a whole step.

A step has hundreds of small kernels, which a GPU computes in less time than the host needs to start them. A graph
starts them all with one call; the host then prepares the next batch, and nothing in a step waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from scripts.draws import Draws
from scripts.methods import Objective
from scripts.methods.teacher import MovingAverage
from scripts.utils.errors import one_line

__all__ = ["CaptureError", "Losses", "StaticSteps", "cuda_graph"]

WARM_UP = 3
"""Steps before a capture, in which the compiler, libraries and the allocator do their one-time work."""

Step = Callable[[], Tensor]


class CaptureError(RuntimeError):
    """A step cannot be recorded; the state of the training is unchanged."""


@dataclass
class Losses:
    """Named losses of a step that the device may still compute.

    Attributes:
        iteration: number of the step, from 1.
        names: names of the losses.
        values: ``[len(names)]`` float32 in the host's memory, to which the device copies them.
        ready: CUDA event at the end of the copy; None: the values are complete.
    """

    iteration: int
    names: Sequence[str]
    values: Tensor
    ready: Any = None

    def read(self) -> dict[str, float]:
        """The losses by name; waits for the device."""
        if self.ready is not None:
            self.ready.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


@dataclass
class _Program:
    """A recorded step: its input tensors, the function that replays it, and the names of its losses."""

    inputs: dict[str, Tensor]
    replay: Step
    names: list[str]


class StaticSteps:
    """Recorded training steps of an objective, one for each phase of the objective and shape of the batch.

    A recorded step reads its batch, the views' random numbers, the learning rate and the progress of the training from
    tensors with fixed addresses. It checks on the device whether the loss is finite, and leaves the weights unchanged
    if it is not. The first step of a training is never recorded: it creates the optimizer's state and the teachers.

    Args:
        objective: a :class:`scripts.methods.Objective` with ``capturable``, on its device.
        optimizer: SGD over its parameters.
        autocast: returns the context of the forward pass.
        record: returns a function that replays the given step; default :func:`cuda_graph`.
        compiler: returns a compiled forward pass of the objective; default ``torch.compile`` on CUDA and none on a CPU,
            where it made the step slower.

    Raises:
        ValueError: if the objective cannot be captured or the optimizer is not SGD.
    """

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        autocast: Callable[[], Any],
        record: Callable[[Step], Step] | None = None,
        compiler: Callable[[Objective], Callable[..., Any]] | None = None,
    ) -> None:
        if reason := self.obstacle(objective, optimizer):
            raise ValueError(reason)
        self.objective = objective
        self.optimizer = optimizer
        self.autocast = autocast
        self.record = record or cuda_graph
        self.device = next(objective.parameters()).device
        if compiler is None and self.device.type == "cuda":
            compiler = _compiled
        self.forward = compiler(objective) if compiler else objective
        self.averages = [module for module in objective.modules() if isinstance(module, MovingAverage)]
        self.programs: dict[Any, _Program] = {}
        self.rates = [torch.zeros((), device=self.device) for _ in optimizer.param_groups]
        self.progress = torch.zeros((), device=self.device)
        self.copying = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    @staticmethod
    def obstacle(objective: Objective, optimizer: torch.optim.Optimizer) -> str | None:
        """Reason why the steps cannot be captured; None if they can."""
        if not vars(type(objective)).get("capturable"):  # not inherited: a subclass may use numbers from the host
            return f"{type(objective).__name__} takes numbers from the host in every step"
        if type(optimizer) is not SGD:
            return f"the optimizer is {type(optimizer).__name__}, expected SGD"
        return None

    def takes(self, iteration: int) -> bool:
        """Whether a step, numbered from 1, can be recorded; the first one creates the state that it needs."""
        return iteration > 1 and all(average.started for average in self.averages)

    def __call__(self, batch: Mapping[str, Tensor], generator: torch.Generator, iteration: int) -> Losses:
        """Begin a step; the host does not wait for its end.

        Args:
            batch: see :class:`scripts.methods.Objective`, on the host.
            generator: generator of the views' random numbers.
            iteration: number of the step, from 1.

        Raises:
            CaptureError: if the step is the first of its kind and cannot be recorded.
        """
        for rate, group in zip(self.rates, self.optimizer.param_groups, strict=True):
            rate.fill_(group["lr"])
        self.progress.fill_(self.objective.passed())
        key = (self.objective.phase, tuple((name, *value.shape, value.dtype) for name, value in batch.items()))
        if key not in self.programs:
            self.programs[key] = self._program(batch)
        program = self.programs[key]
        count = program.inputs["draws"].numel()
        self._fill(program.inputs, {**batch, "draws": torch.rand(count, generator=generator)})
        values = program.replay()
        if self.device.type != "cuda":
            return Losses(iteration, program.names, values.clone())
        host = torch.empty(values.shape, pin_memory=True)
        host.copy_(values, non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return Losses(iteration, program.names, host, ready)

    def _program(self, batch: Mapping[str, Tensor]) -> _Program:
        inputs = {name: _empty(value, self.device) for name, value in batch.items()}
        self._fill(inputs, batch)
        names: list[str] = []

        def step() -> Tensor:
            self.objective.draws = Draws(self.device, inputs["draws"])
            self.objective.progress = self.progress
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                losses = self.forward({name: value for name, value in inputs.items() if name != "draws"})
            names[:] = losses
            values = torch.stack([loss.detach().float() for loss in losses.values()])
            losses["loss"].backward()
            self._optimize((~losses["loss"].detach().isfinite()).float())
            self.objective.after_step()
            return values

        with self._untouched():
            draws = self.objective.draws = Draws(self.device, generator=torch.Generator())
            with self.autocast():
                self.objective(inputs)
            inputs["draws"] = torch.rand(draws.taken).to(self.device)
            try:
                replay = self.record(step)
            except Exception as error:  # of a compiler, a library or the driver
                raise CaptureError(one_line(error)) from error
            finally:
                self.objective.draws = self.objective.progress = None
        return _Program(inputs, replay, names)

    def _fill(self, inputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Copy a batch into the step's inputs; on a GPU the transfer overlaps with the step that still runs."""
        if self.copying is None:
            for name, value in batch.items():
                inputs[name].copy_(value)
            return
        present = torch.cuda.current_stream(self.device)
        pinned = {name: _channels_last(value).pin_memory() for name, value in batch.items()}
        with torch.cuda.stream(self.copying):
            staged = {name: value.to(self.device, non_blocking=True) for name, value in pinned.items()}
        present.wait_stream(self.copying)
        for name, value in staged.items():
            value.record_stream(present)
            inputs[name].copy_(value)

    def _optimize(self, skipped: Tensor) -> None:
        """A fused optimizer step with the learning rates in tensors; without effect if ``skipped`` is 1."""
        groups = self.optimizer.param_groups
        kept = [{name: group[name] for name in ("lr", "fused", "foreach")} for group in groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group.update(lr=rate, fused=True, foreach=False)
        optimizer: Any = self.optimizer
        optimizer.found_inf = skipped
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
            for group, settings in zip(groups, kept, strict=True):
                group.update(settings)

    @contextmanager
    def _untouched(self) -> Iterator[None]:
        """Restore weights, averages, momenta and random states at the end: a warm-up is not part of the training."""
        state = [value for values in self.optimizer.state.values() for value in values.values()]
        tensors = [
            value.detach()
            for value in (*self.objective.parameters(), *self.objective.buffers(), *state)
            if isinstance(value, Tensor)
        ]
        before = [value.clone() for value in tensors]
        try:
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                yield
        finally:
            for value, kept in zip(tensors, before, strict=True):
                value.copy_(kept)


def cuda_graph(step: Step) -> Step:
    """Record a step as a CUDA graph.

    Args:
        step: reads and writes tensors with fixed addresses, and returns one.
    """
    side, present = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(present)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    present.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay


def _compiled(objective: Objective) -> Callable[..., Any]:
    # A function around the module, because compiling the module itself would bypass its own ``__call__``.
    def forward(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return objective(batch)

    return torch.compile(forward, fullgraph=True, dynamic=False)


def _empty(value: Tensor, device: torch.device) -> Tensor:
    return torch.empty_like(_channels_last(value), device=device)


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value.contiguous()
