"""One clear line for a user's mistake instead of a page of nested tracebacks."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

__all__ = [
    "FaultsError",
    "fault_line",
    "one_line",
    "plain_errors",
    "raised_in",
    "root_cause",
]

_EXPECTED = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError)
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


def plain_errors() -> None:
    """On the command line, end with the message alone when this package rejects what it was given.

    So does a ``_target_`` that does not exist, a method's name misspelled, say.

    MONAI wraps what a config's component raises, once per level, so that the last line a user sees is the least
    telling. Anything unexpected keeps its full traceback, and so does every program that imports the bundle: only
    ``python -m monai.bundle`` and the training process of a MONAI Label server get the hook.
    """
    if Path(sys.argv[0]).parts[-3:] not in _PROGRAMS:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        cause = root_cause(error)
        ours = isinstance(cause, _EXPECTED) and raised_in(cause, _PACKAGE)
        if ours or str(cause).startswith(_UNKNOWN_COMPONENT):
            print(f"error: {cause}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
