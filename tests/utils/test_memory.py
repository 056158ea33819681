"""Freed memory stays with the process only while it trains on a CPU."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events

from bundle.workflows import isolated
from scripts.methods import Supervised
from tests.test_engine import network, trainer

STATM = Path("/proc/self/statm")
GNU = platform.libc_ver()[0] == "glibc" and STATM.exists()


def growth_by_a_freed_tensor() -> tuple[float, float, float]:
    """MiB by which the process has grown once a tensor of 256 MiB is freed: before, in and after a training."""

    def resident() -> float:
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def growth() -> float:
        torch.ones(2**26)
        return resident() - start

    def in_training(engine: Engine) -> None:
        found.append(growth())

    engine = trainer(Supervised(network()), epochs=1)
    engine.add_event_handler(Events.STARTED, in_training)
    start, found = resident(), []
    before = growth()
    engine.run()
    return before, found[0], growth()


@pytest.mark.skipif(not GNU, reason="the GNU C library's, looked at through /proc")
def test_training_keeps_freed_memory_and_gives_it_back_at_the_end() -> None:
    before, in_training, after = isolated(growth_by_a_freed_tensor)
    assert before < 100
    assert in_training > 200
    assert after < 100
