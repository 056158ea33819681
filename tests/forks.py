"""Command lines in forked processes, so that PyTorch and MONAI are loaded once for many runs. POSIX only."""

from __future__ import annotations

import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai.bundle  # noqa: F401 - loaded before the forks
import torch

__all__ = ["EARLY", "FORK", "run_module", "run_monai"]

ROOT = Path(__file__).resolve().parents[1]
EARLY = "error: interrupted before the bundle's own code was there to say so"
FORK = multiprocessing.get_context("fork")
LONG = 900.0  # seconds after which a run is considered hanging


def run_monai(words: Sequence[str], log: Path, **options: Any) -> tuple[int, str]:
    """Run a command line of ``python -m monai.bundle`` in the repository's folder, see :func:`run_module`."""
    return run_module("monai.bundle", words, log, **options)


def run_module(
    module: str,
    words: Sequence[str],
    log: Path,
    end: signal.Signals | None = None,
    after: float = LONG,
    limit: int | None = None,
    folder: Path = ROOT,
    before: Callable[[], object] | None = None,
    until: Callable[[], bool] = lambda: True,
) -> tuple[int, str]:
    """Run a command line of ``python -m MODULE``.

    Args:
        module: its name.
        words: what follows it.
        log: the file that takes what it prints.
        end: the signal that ends it; default: SIGKILL.
        after: seconds until then.
        limit: the largest file that it may write, in bytes; None: any.
        folder: where it runs, and where its modules are looked for first.
        before: called in the process before the module runs.
        until: what is waited for before the seconds count.

    Returns:
        Its exit code, negative for a signal, and what it printed.
    """
    with log.open("wb") as stream:  # written by another process without a limit
        printer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=stream)
    assert printer.stdin is not None
    process = FORK.Process(target=_command, args=(module, words, printer.stdin.fileno(), limit, folder, before))
    process.start()
    while process.is_alive() and not until():
        time.sleep(0.01)
    process.join(after)
    if process.is_alive() and process.pid is not None:
        os.kill(process.pid, end or signal.SIGKILL)
        process.join(60)
    printer.communicate()
    code = process.exitcode if process.exitcode is not None else 999
    return code, log.read_text(errors="replace")


def _command(
    module: str,
    words: Sequence[str],
    log: int,
    limit: int | None,
    folder: Path,
    before: Callable[[], object] | None,
) -> None:
    """Be a command line, in a process of one's own that prints into a pipe."""
    for number in (1, 2):
        os.dup2(log, number)
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(folder)
    sys.path[0] = str(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if limit is not None:  # simulates a full disk, because root can use the disk's reserve
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [module, *words]
    code = 0
    try:
        if before is not None:
            before()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        print(error.code if code == 1 else "", file=sys.stderr)
    except BaseException as error:  # like Python's own exit
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        if code == 130 and sys.excepthook is sys.__excepthook__:
            print(EARLY, file=sys.stderr)
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
