"""Several methods, ablations and seeds, in one command: ``python -m bundle compare``.

Every run has its own folder and process. Finished runs are not repeated, interrupted ones resume from their checkpoint,
and failed ones are listed at the end without stopping the others. :mod:`bundle.compare.runs` defines the runs and their
settings, :mod:`bundle.compare.results` makes the tables.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from bundle.compare.results import CHECKPOINTS, PARTS, collect, write_comparison
from bundle.compare.runs import PLAIN, Run, command_line, labeled_counts, plan, store
from bundle.workflows import ROOT, execute, isolated
from scripts.utils.errors import one_line

__all__ = ["main"]


def main(
    methods: str | Sequence[str],
    seeds: int | Sequence[int] = 0,
    overlays: str | Sequence[str] = PLAIN,
    labeled: int | float | str | Sequence[float] | None = None,
    config_file: str | Sequence[str] = (),
    output: str = str(ROOT / "output" / "compare"),
    part: str = "val",
    jobs: int = 1,
    **overrides: Any,
) -> None:
    """Train and evaluate every method with every ablation and seed; write a CSV, a table and the validation curves.

    Give the same output folder again to continue after an interruption, to add methods, ablations or seeds, or to
    evaluate another part: the tables contain all finished runs of the folder. A folder admits one such command at a
    time.

    Args:
        methods: names of overlays in ``configs/methods`` or paths of others, separated by commas, or ``all``.
        seeds: seed or seeds.
        overlays: ablations: names or paths of overlays in ``configs/ablations``, or single values as ``ID=VALUE`` with
            ``::`` for ``#`` in the id (``method::regions=8``); ``default`` is the unchanged method.
        labeled: number of labelled cases, or several, separated by commas: each is trained with every method, ablation
            and seed. With three or more, a power law is fitted to the results (1 - DSC falls as a power of the number
            of labels), with a forecast for twice the largest number; default: the configuration's.
        config_file: config files after ``configs/train.json`` and before the method's, for example
            ``configs/cpu.json``.
        output: folder of the runs, the tables and the picture.
        part: part of the data set that is reported, ``val`` or ``test``.
        jobs: parallel runs; each gets its share of PyTorch's threads, and all must fit into memory.
        **overrides: further config overrides of all runs, for example ``--batch_size 4``.

    Raises:
        ValueError: see :func:`bundle.compare.runs.plan` and :func:`bundle.compare.runs.store`; also for an invalid part
            or number of jobs.
        FileNotFoundError: if there is no such config file.
    """
    counts = labeled_counts(labeled)
    if len(counts) == 1:
        overrides["labeled"] = counts.pop()
    command = command_line(methods, seeds, overlays, config_file, output, part, overrides, counts)
    folder = Path(output).resolve()
    if part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}, found {part}.")
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ValueError(f"jobs: expected a whole number from 1, found {jobs}.")
    runs = plan(methods, seeds, overlays, config_file, overrides, counts)
    store(folder, runs, config_file, overrides, command)
    threads = max(1, torch.get_num_threads() // jobs)
    left = sum(not _finished(folder / run.name, part) for run in runs)
    began = time.perf_counter()
    ended: list[str] = []

    def work(number: int, run: Run) -> str:
        name = f"[{number}/{len(runs)}] {run}:"
        if _finished(folder / run.name, part):
            print(name, "is finished", flush=True)
            return ""
        print(name, f"log in {Path(output, run.name, 'log.txt')}", flush=True)
        start = time.perf_counter()
        try:
            problem: str = isolated(_train_and_evaluate, folder / run.name, part, threads)
        except BrokenProcessPool:
            problem = "the process was killed; out of memory?"
        now = time.perf_counter()
        ended.append(run.name)
        rest = (now - began) / len(ended) * (left - len(ended))
        outcome = f"failed: {problem}" if problem else f"done in {now - start:.0f} s"
        print(name, f"{outcome}; {len(ended)} of {left} runs ended, about {_duration(rest)} left", flush=True)
        return problem

    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(work, *numbered) for numbered in enumerate(runs, start=1)]
        try:
            problems = [future.result() for future in waiting]
        except BaseException:  # an interruption ends the running runs and must not start the others
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    failed = {str(run): problem for run, problem in zip(runs, problems, strict=True) if problem}
    rows = collect(folder, part)
    if rows:
        print(f"\n{write_comparison(folder, rows, part, command)}")
    if failed:
        sys.exit("\n".join(f"error: {run}: {problem}" for run, problem in failed.items()))


def _duration(seconds: float) -> str:
    """A readable duration in seconds, minutes or hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _train_and_evaluate(folder: Path, part: str, threads: int) -> str:
    """Train and evaluate the unfinished parts of a run, in a separate process.

    Returns:
        The error in one line, or an empty text.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    torch.set_num_threads(threads)
    root = {"bundle_root": str(ROOT)}
    try:
        if not (folder / "model_last.pt").is_file():
            execute("train", [folder / "train.json"], **root, output_dir=str(folder), resume=True)
        for name, weights in CHECKPOINTS.items():
            target = folder / f"{part}-{name}"
            if not (target / "summary.csv").is_file():
                given = {"checkpoint": str(folder / weights), "output_dir": str(target), "part": part}
                execute("infer", [folder / "evaluate.json"], **root, **given)
    except Exception as error:
        traceback.print_exc()
        return one_line(error)
    return ""


def _end_with_parent() -> None:
    """End a run whose comparison was killed, so that it does not run parallel to its successor."""
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _finished(folder: Path, part: str) -> bool:
    """Whether training is complete and both its networks are evaluated; the settings have been compared before."""
    files = ["model_last.pt", *(f"{part}-{name}/summary.csv" for name in CHECKPOINTS)]
    return all((folder / file).is_file() for file in files)
