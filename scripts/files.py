"""Files that are there whole or not at all, and the digest of what is in them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

__all__ = ["replacing", "update_digest", "write_text"]


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file under another name and rename it at the end: whoever reads it never sees half of it.

    Args:
        path: the file; it replaces one of this name, its folder is created if need be.

    Yields:
        a path in the same folder with the same suffix, no other writer's. Where the block raises, what it wrote there
        is removed and the earlier file stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:12]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of text, the same bytes on every system, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def update_digest(digest: Any, path: str | Path) -> None:
    """Take a file's content into a digest of :mod:`hashlib`, whatever its size."""
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
