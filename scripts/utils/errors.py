"""One clear line for a user's mistake instead of a page of nested tracebacks."""

from __future__ import annotations

import errno
import io
import logging
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = [
    "INTERRUPTED",
    "FaultsError",
    "WriteError",
    "fault_line",
    "one_line",
    "plain_errors",
    "plain_line",
    "plain_output",
    "raised_in",
    "root_cause",
]


class WriteError(OSError):
    """A file or folder that cannot be written, in words: a full disk, a folder without permission."""


_EXPECTED = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError, WriteError)
# What the machine refuses, whoever asks: its own words name the file.
_REFUSED = {
    getattr(errno, f"E{name}", None)
    for name in (
        *("ACCES", "DQUOT", "EXIST", "FBIG", "IO", "ISDIR", "LOOP", "MFILE"),
        *("NAMETOOLONG", "NFILE", "NOENT", "NOSPC", "NOTDIR", "PERM", "PIPE", "ROFS"),
    )
} - {None}
INTERRUPTED = 130
"""Exit code of a program that the user interrupted."""
# The programs that run a bundle's workflow for a user: MONAI's command line, and MONAI Label's training process.
MONAI_PROGRAM = ("monai", "bundle", "__main__.py")
_PROGRAMS = {MONAI_PROGRAM, ("interfaces", "utils", "app.py")}
_UNKNOWN_COMPONENT = "Cannot locate class or function path"  # MONAI's words
_PACKAGE = Path(__file__).resolve().parents[1]  # scripts
_SHOWN = 5


class FaultsError(ValueError):
    """What is wrong with a data set: a line for each fault, of which the message shows the first few.

    Args:
        faults: one line each.
        shown: how many of them the message has.

    Attributes:
        faults: all of them.
    """

    def __init__(self, faults: Sequence[str], shown: int = _SHOWN) -> None:
        self.faults = list(faults)
        more = [f"... and {len(self.faults) - shown} more"] if len(self.faults) > shown else []
        super().__init__("\n".join([*self.faults[:shown], *more]))


def root_cause(error: BaseException) -> BaseException:
    """The error that started a chain of "raise ... from ..."."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def raised_in(error: BaseException, *folders: Path) -> bool:
    """Whether the code that raised an error lies in one of these folders, not in a library that it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(folder in Path(frames[-1].filename).resolve().parents for folder in folders)


def one_line(error: BaseException) -> str:
    """What the error that started a chain says, on one line of at most 300 characters."""
    cause = root_cause(error)
    return " ".join(str(cause).split())[:300] or type(cause).__name__


def fault_line(error: BaseException, *files: str) -> str:
    """What went wrong with one of some files, as one line that begins with it, or with all if the error names none."""
    what = one_line(error)
    if what.startswith(files):
        return what
    return f"{' / '.join([file for file in files if file in what] or files)}: cannot be read: {what}"


def plain_line(error: BaseException, *folders: Path) -> str | None:
    """What a user needs to know of an error, as one line or a list of faults; None: it is none that was foreseen.

    Args:
        error: what ended a program; MONAI wraps what a config's component raises, once per level.
        folders: of the code whose messages are written for users.
    """
    cause = root_cause(error)
    if isinstance(cause, KeyboardInterrupt):
        return "interrupted."
    if isinstance(cause, OSError) and cause.errno in _REFUSED:
        return f"{cause.filename}: {cause.strerror}." if cause.filename else f"{cause.strerror}."
    if isinstance(cause, _EXPECTED) and raised_in(cause, *folders):
        return str(cause)
    return str(cause) if str(cause).startswith(_UNKNOWN_COMPONENT) else None


def plain_output() -> None:
    """Characters that a terminal or a log cannot show are written as their code points: they end no program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):  # closed, or redirected under Python's feet
                stream.reconfigure(errors="backslashreplace")


def plain_errors() -> None:
    """On the command line, end with the message alone when this package rejects what it was given.

    So does a ``_target_`` that does not exist, a method's name misspelled, say, a full disk, or an interruption.
    Anything unexpected keeps its full traceback, and so does every program that imports the bundle: only
    ``python -m monai.bundle`` and the training process of a MONAI Label server get the hook.
    """
    if Path(sys.argv[0]).parts[-3:] not in _PROGRAMS:
        return
    plain_output()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if (line := plain_line(error, _PACKAGE)) is None:
            sys.__excepthook__(kind, error, trace)
        else:
            print(f"error: {line}", file=sys.stderr)

    make = logging.getLogRecordFactory()

    def record(*args: Any, **kwargs: Any) -> logging.LogRecord:
        """Without the traceback, which MONAI's handlers log, of what the hook will tell in a line."""
        made = make(*args, **kwargs)
        error = made.exc_info[1] if made.exc_info else None
        if error is not None and plain_line(error, _PACKAGE) is not None:
            made.exc_info = None
        return made

    sys.excepthook = hook
    logging.setLogRecordFactory(record)
