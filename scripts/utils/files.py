"""Atomic writing, digests and listing of files."""

from __future__ import annotations

import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any
from uuid import uuid4

from scripts.utils.errors import WriteError

__all__ = [
    "as_stored",
    "check_readable",
    "check_writable",
    "files_below",
    "replacing",
    "sweep",
    "update_digest",
    "write_csv",
    "write_text",
]

_TEMPORARY = re.compile(r"\.[0-9a-f]{12}\..+|tmp[a-z0-9_]{8}")  # of `replacing` and of Ignite


def check_readable(path: str | Path) -> None:
    """Check that a file exists and is readable; libraries report an unreadable file as damaged.

    Raises:
        FileNotFoundError: if it does not exist.
        ValueError: if it is not readable or not a file.
    """
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file.") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be opened: {error.strerror}.") from None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file under a temporary name and rename it at the end: a reader never sees a partial file.

    Args:
        path: the file; an existing one is replaced, its folder is created if missing.

    Yields:
        a temporary path in the same folder with the same suffix, unique to this writer. If the block raises, it is
        removed and the earlier file stays unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid4().hex[:12]}.{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except Exception as error:
        if (cause := _refusal(error, temporary)) is None:
            raise
        raise WriteError(f"'{path}' cannot be written: {cause.strerror}.") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _refusal(error: BaseException | None, temporary: Path) -> OSError | None:
    """The operating system's error of a write, also behind a library's own error; None if there is none."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            named = error.filename is None or Path(os.fsdecode(error.filename)) in (temporary, *temporary.parents)
            return error if named else None
        error = error.__cause__ or error.__context__
    return None


def check_writable(folder: str | Path) -> None:
    """Check before hours of work that files can be written to a folder, which need not exist yet.

    Raises:
        WriteError: if nothing can be written.
    """
    there = next(place for place in (Path(folder), *Path(folder).absolute().parents) if place.exists())
    try:
        with TemporaryFile(dir=there) as stream:
            stream.write(bytes(4096))
    except OSError as error:
        raise WriteError(f"nothing can be written to '{folder}': {error.strerror}.") from None


def sweep(folder: str | Path) -> None:
    """Remove the temporary files of killed processes from a folder that no other process writes to."""
    for path in Path(folder).iterdir():
        if not _TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        if path.name.startswith("tmp"):
            with path.open("rb") as stream:
                if stream.read(2) not in (b"", b"PK"):  # not an incomplete file of PyTorch
                    continue
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file with the same bytes on every system, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def as_stored(path: str | Path) -> str:
    """A path in the Unicode form in which the file system stores it; macOS uses another form than most systems.

    Args:
        path: an absolute path, returned unchanged if it exists in no form.
    """
    path = Path(path)
    found = Path(path.anchor)
    # os.path.exists returns False for names that are too long, pathlib raises
    for part in () if os.path.exists(path) else path.parts[1:]:
        if not os.path.exists(found / part) and os.path.isdir(found):
            form = unicodedata.normalize("NFC", part)
            part = next((name for name in os.listdir(found) if unicodedata.normalize("NFC", name) == form), part)
        found /= part
    return str(path if os.path.exists(path) else found)


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]], fields: Sequence[str] | None = None) -> None:
    """Write a table, see :func:`replacing`: numbers to six decimals, None as an empty field.

    Args:
        path: the file.
        rows: values by column name.
        fields: the columns; default: those of the first row.
    """
    text = io.StringIO()
    fields = fields or (list(rows[0]) if rows else [])
    writer = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    write_text(path, text.getvalue())


def update_digest(digest: Any, path: str | Path) -> None:
    """Add a file's content to a digest of :mod:`hashlib`, in blocks."""
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)


def files_below(root: Path) -> list[Path]:
    """Files of a folder and its subfolders, sorted by path, without hidden ones.

    Links to folders are followed. A folder with several paths is listed once, under its own path or else the first
    link, so that no file is listed twice and a link to a parent folder causes no endless loop. Broken links are listed:
    the caller decides by the name whether they matter.

    Args:
        root: the folder; the paths begin with it.

    Raises:
        ValueError: if a folder is not readable; it must not look empty.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"'{error.filename}' cannot be read: {error.strerror}.")

    found: list[Path] = []
    seen: set[str] = set()
    starts = [str(root)]
    while starts:
        links = []
        for start in starts:
            for folder, folders, files in os.walk(start, onerror=refuse):  # lists linked folders, does not enter them
                real = os.path.realpath(folder)
                if real in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                paths = (os.path.join(folder, name) for name in folders)
                links += [path for path in paths if os.path.islink(path)]
                found += [Path(folder, name) for name in files if not name.startswith(".")]
        starts = links
    return sorted(path for path in found if path.is_file() or not path.exists())
