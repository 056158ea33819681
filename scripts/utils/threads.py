"""A small thread pool for reading files, limited to the cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

__all__ = ["in_threads", "thread_count"]

MOST = 8  # more are no faster, and each keeps a volume in memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count() -> int:
    """Number of cores that this process may use (Slurm and containers limit it), at most eight."""
    # os.cpu_count() counts the machine's cores; not every system has a process's share.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, usable)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], progress: str | None = None) -> list[Result]:
    """A function's results for all items, in order.

    Args:
        function: called in several threads at once; its first error is raised.
        items: its arguments.
        progress: title of a progress bar, drawn on a terminal only. None: no bar.
    """
    items = list(items)
    with ThreadPoolExecutor(thread_count()) as pool:
        results: Iterable[Result] = pool.map(function, items)
        if progress is not None:
            # None: tqdm draws on a terminal only, which keeps logs readable
            results = tqdm(results, desc=progress, total=len(items), unit="file", disable=None if items else True)
        try:
            return list(results)
        except BaseException:  # an interruption or a full disk: cancel what has not started
            pool.shutdown(wait=False, cancel_futures=True)
            raise
