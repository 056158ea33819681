"""The MONAI Label server of a training."""

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
    """End this process soon after the MONAI Label server that started it; without one, do nothing.

    Otherwise the training of a crashed server would replace the weights of the next server.
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
        logger.error("The server has ended: this training ends too and does not replace the served network.")
        sys.stdout.flush()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _command(process: object) -> list[str]:
    try:
        return list(process.cmdline())  # type: ignore[attr-defined]
    except Exception:  # another user's process, or none
        return []
