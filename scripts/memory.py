"""Memory that a training step frees and takes again, step after step."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["freed_memory_kept"]

# from glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within, this process keeps the memory of freed tensors for the next ones; at the end it gives back what is free.

    By its defaults the GNU C library returns a large tensor's memory to the system at once, and the next tensor's
    pages are mapped and zeroed anew, one by one: on a CPU that takes a sixth of a float32 step of FixMatch and a third
    of SemSim's. Other C libraries are left as they are.
    """
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    assert library is not None
    library.mallopt(M_MMAP_MAX, 0)
    library.mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_MAX, 65536)  # the default
        library.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)  # what the default grows to with the tensors that are freed
        library.malloc_trim(0)
