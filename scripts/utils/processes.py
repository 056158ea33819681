"""Several processes that work on one thing, as ``torchrun`` starts them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

__all__ = ["from_first", "gathered", "join_processes", "rank_and_count", "worker_method"]

Value = TypeVar("Value")


def join_processes() -> None:
    """Connect the processes that ``torchrun`` started; where it did not, or they are connected, do nothing.

    They compute on their own and meet at the end, for which the last one may need hours longer than the first.
    """
    if dist.is_available() and dist.is_torchelastic_launched() and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=7))


def worker_method(num_workers: int) -> str | None:
    """How a loader's worker processes start, named since MONAI inverts transforms after two of the ways only.

    A process that is forked has the transforms themselves. Elsewhere they are copies, which MONAI accepts where
    ``spawn`` is the default, as on Windows and macOS, and not after ``forkserver``, Linux's default from Python 3.14.

    Args:
        num_workers: how many there are; where there are none, nothing starts.
    """
    if not num_workers:
        return None
    return "fork" if sys.platform == "linux" else "spawn"


def rank_and_count() -> tuple[int, int]:
    """This process's number and how many there are; 0 and 1 where none are connected."""
    connected = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if connected else (0, 1)


def gathered(value: Value) -> list[Value]:
    """The values of all processes in their order; every one waits here until the others are as far.

    Args:
        value: this process's; it can be pickled.
    """
    _, count = rank_and_count()
    if count == 1:
        return [value]
    values: list[Value | None] = [None] * count
    dist.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def from_first(make: Callable[[], Value]) -> Value:
    """What the first process makes, in every process: machines that share no storage then agree.

    Args:
        make: called in the first process only; its result can be pickled. What it raises is raised in all of them.
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
