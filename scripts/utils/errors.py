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
from pydoc import ErrorDuringImport
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
    """A file or folder that cannot be written, for example on a full disk or without permission."""


_EXPECTED = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError, WriteError)
# Refusals by the operating system; their messages name the file.
_REFUSED = {
    getattr(errno, f"E{name}", None)
    for name in (
        *("ACCES", "DQUOT", "EXIST", "FBIG", "IO", "ISDIR", "LOOP", "MFILE"),
        *("NAMETOOLONG", "NFILE", "NOENT", "NOSPC", "NOTDIR", "PERM", "PIPE", "ROFS"),
    )
} - {None}
_FULL = {getattr(errno, f"E{name}", None) for name in ("DQUOT", "FBIG", "NOSPC", "ROFS")} - {None}  # when writing only
INTERRUPTED = 130
"""Exit code of a program that the user interrupted."""
# The programs that run a workflow for a user: MONAI's command line and MONAI Label's training process.
MONAI_PROGRAM = ("monai", "bundle", "__main__.py")
_PROGRAMS = {MONAI_PROGRAM, ("interfaces", "utils", "app.py")}
_UNKNOWN_COMPONENT = "Cannot locate class or function path"  # MONAI's message
_PACKAGE = Path(__file__).resolve().parents[1]  # scripts
_SHOWN = 5


class FaultsError(ValueError):
    """The faults of a data set, one line each; the message shows the first few.

    Args:
        faults: one line each.
        shown: maximum number of faults in the message.

    Attributes:
        faults: all faults.
    """

    def __init__(self, faults: Sequence[str], shown: int = _SHOWN) -> None:
        self.faults = list(faults)
        more = [f"... and {len(self.faults) - shown} more"] if len(self.faults) > shown else []
        super().__init__("\n".join([*self.faults[:shown], *more]))


def root_cause(error: BaseException) -> BaseException:
    """The error that started a chain of "raise ... from ...", or that ended the import of a config's component."""
    while (cause := error.value if isinstance(error, ErrorDuringImport) else error.__cause__) is not None:
        error = cause
    return error


def raised_in(error: BaseException, *folders: Path) -> bool:
    """Whether the error was raised by code in one of these folders, not in a library."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and any(folder in Path(frames[-1].filename).resolve().parents for folder in folders)


def one_line(error: BaseException) -> str:
    """The message of the error that started a chain, on one line of at most 300 characters."""
    cause = root_cause(error)
    return " ".join(str(cause).split())[:300] or type(cause).__name__


def fault_line(error: BaseException, *files: str) -> str:
    """An error about one of several files as one line that begins with the file, or with all if it names none."""
    what, cause = one_line(error), root_cause(error)
    if what.startswith(files):
        return what
    full = isinstance(cause, WriteError) or (isinstance(cause, OSError) and cause.errno in _FULL)
    about = " / ".join([file for file in files if file in what] or files)
    return f"{about}: {what}" if full else f"{about}: cannot be read: {what}"


def plain_line(error: BaseException, *folders: Path) -> str | None:
    """The user's message of an error, one line or a list of faults; None for an unexpected error.

    Args:
        error: the error that ended a program; MONAI wraps the errors of a config's component, once per level.
        folders: folders of the code whose messages are written for users.
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
    """Write characters that a terminal or a log cannot show as code points instead of raising an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with suppress(OSError, ValueError):  # closed or replaced
                stream.reconfigure(errors="backslashreplace")


def plain_errors() -> None:
    """On the command line, print only the message if this package rejects its input.

    The same holds for a ``_target_`` that does not exist (such as a misspelled method), a full disk, or an
    interruption. Unexpected errors keep their full traceback, and so do programs that import the bundle: only
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
        """Drop the traceback that MONAI's handlers log for errors that the hook reports in one line."""
        made = make(*args, **kwargs)
        error = made.exc_info[1] if made.exc_info else None
        if error is not None and plain_line(error, _PACKAGE) is not None:
            made.exc_info = None
        return made

    sys.excepthook = hook
    logging.setLogRecordFactory(record)
