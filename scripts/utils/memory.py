"""Reuse of the memory that a training step frees, on a CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["freed_memory_kept"]

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4


@contextmanager
def freed_memory_kept(device: torch.device | str) -> Iterator[None]:
    """Context in which a process on a CPU keeps the memory of freed tensors for the next ones.

    By default the GNU C library returns a large tensor's memory to the system at once, and the pages of the next tensor
    are mapped and zeroed again one by one: a tenth of FixMatch's step at 224 px in float32, a third of SemSim's in
    bfloat16 (docs/benchmarks.md). Free memory is returned at the end. Other C libraries are not changed.

    Args:
        device: device of the tensors; on others than a CPU nothing changes.
    """
    here = sys.platform == "linux" and torch.device(device).type == "cpu"
    library = ctypes.CDLL(None) if here else None
    mallopt, malloc_trim = (getattr(library, name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is None or malloc_trim is None:
        yield
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        mallopt(M_MMAP_MAX, 65536)  # the default; the others to the values that they would reach with these tensors
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
        mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
        malloc_trim(0)
