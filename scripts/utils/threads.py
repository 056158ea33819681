"""A small thread pool for reading files, limited to the cores that this process may use."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

__all__ = ["in_threads", "thread_count"]

MOST = 8  # more read no faster, and each holds a volume in memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def thread_count() -> int:
    """The cores that this process may use, which Slurm and containers limit, but at most eight."""
    # os.cpu_count() knows the machine alone; not every system tells the process's own share.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST, usable)


def in_threads(function: Callable[[Item], Result], items: Iterable[Item], progress: str | None = None) -> list[Result]:
    """A function's results for all items, in order.

    Args:
        function: called in several threads at once; the first error that it raises is raised here.
        items: its arguments.
        progress: what a progress bar calls the work; it is drawn on a terminal only. None: no bar.
    """
    items = list(items)
    with ThreadPoolExecutor(thread_count()) as pool:
        results: Iterable[Result] = pool.map(function, items)
        if progress is not None:
            # None: tqdm draws on a terminal alone, so that logs stay readable
            results = tqdm(results, desc=progress, total=len(items), unit="file", disable=None if items else True)
        try:
            return list(results)
        except BaseException:  # an interruption, a full disk: what has not begun must not begin any more
            pool.shutdown(wait=False, cancel_futures=True)
            raise
