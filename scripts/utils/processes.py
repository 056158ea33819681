"""Several processes of one run, as ``torchrun`` starts them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["from_first", "gathered", "join_processes", "rank_and_count", "worker_method"]

Value = TypeVar("Value")


def join_processes() -> None:
    """Connect the processes of ``torchrun``; without it, or if they are connected, do nothing.

    They compute independently and synchronise at the end, hours apart in the worst case.
    """
    if dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))


def worker_method(num_workers: int) -> str | None:
    """Start method of a loader's workers under which MONAI can invert transforms.

    A forked process shares the transforms. Otherwise they are copies, which MONAI accepts if ``spawn`` is the default,
    as on Windows and macOS, but not after ``forkserver``, Linux's default from Python 3.14.

    Args:
        num_workers: number of workers; with 0 the result is None.
    """
    if not num_workers:
        return None
    return "fork" if sys.platform == "linux" else "spawn"


def rank_and_count() -> tuple[int, int]:
    """This process's number and the number of processes; 0 and 1 without a connection."""
    connected = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)


def gathered(value: Value) -> list[Value]:
    """The values of all processes in their order; a barrier.

    Args:
        value: this process's value, picklable.
    """
    _, count = rank_and_count()
    if count == 1:
        return [value]
    values: list[Value | None] = [None] * count
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def from_first(make: Callable[[], Value]) -> Value:
    """The first process's result in every process, so that machines without shared storage agree.

    Args:
        make: called in the first process only; its result is picklable. An error is raised in all processes.
    """
    rank, count = rank_and_count()
    if count == 1:
        return make()
    made: list[Any] = [None, None]
    if rank == 0:
        try:
            made[0] = make()
        except Exception as error:
            made[1] = error
    dist.broadcast_object_list(made, 0)
    if made[1] is not None:
        raise made[1]
    result: Value = made[0]
    return result
