from __future__ import annotations

import io
import os
import sys
import threading
import time

import pytest

from scripts.utils.threads import in_threads, thread_count


@pytest.mark.parametrize(("usable", "count"), [(1, 1), (3, 3), (64, 8)])
def test_threads_are_the_cores_that_this_process_may_use(
    monkeypatch: pytest.MonkeyPatch, usable: int, count: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 128)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(usable)), raising=False)
    assert thread_count() == count
    monkeypatch.delattr(os, "sched_getaffinity")
    assert thread_count() == 8


def test_results_come_in_order_from_no_more_threads_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    threads = set()

    def work(item: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.01 * (item % 2))
        return item * item

    assert in_threads(work, range(12)) == [item * item for item in range(12)]
    assert len(threads) == 2


def test_a_bar_counts_the_work_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def __init__(self, terminal: bool) -> None:
            super().__init__()
            self.terminal = terminal

        def isatty(self) -> bool:
            return self.terminal

    for terminal in (True, False):
        screen = Screen(terminal)
        monkeypatch.setattr(sys, "stderr", screen)
        assert in_threads(str, range(3), "reading") == ["0", "1", "2"]
        assert ("reading: 100%" in screen.getvalue() and "3/3" in screen.getvalue()) == terminal
        assert bool(screen.getvalue()) == terminal
