"""The server that a training belongs to."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time

__all__ = ["end_with_server"]

logger = logging.getLogger(__name__)

PROGRAM = "monailabel.interfaces.utils.app"  # MONAI Label's training process
INTERVAL = 2.0  # seconds


def end_with_server() -> None:
    """End this process soon after the MONAI Label server that started it; anywhere else do nothing.

    A server that crashes leaves its training behind, which would replace the weights under the next server.
    """
    try:
        import psutil  # MONAI Label's
    except ImportError:
        return
    processes = [psutil.Process(), *psutil.Process().parents()]
    programs = [index for index, process in enumerate(processes) if PROGRAM in _command(process)]
    if not programs:
        return
    server = processes[programs[-1] + 1] if programs[-1] + 1 < len(processes) else None

    def alive() -> bool:
        try:
            return server is not None and server.is_running() and server.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def watch() -> None:
        while alive():
            time.sleep(INTERVAL)
        logger.error("The server is gone: this training ends and leaves the served network as it is.")
        sys.stdout.flush()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _command(process: object) -> list[str]:
    try:
        return list(process.cmdline())  # type: ignore[attr-defined]
    except Exception:  # another user's, or gone
        return []
