"""Several machines without a shared disk: each process has its own folder, the first one's checkpoint is used."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from scripts.handlers.checkpoints import RunCheckpoint, guard_output
from scripts.utils.processes import from_first
from tests.methods.common import Batches, build, trainer


def train(rank: int, folder: str, epochs: int, resume: bool, rates: tuple[float, float]) -> None:
    """Train in ``folder/RANK``; an error is written to ``folder/RANK.txt``. Processes start with different weights."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    output = Path(folder, str(rank))
    objective = build("mean_teacher", seed=rank)
    engine = trainer(objective, epochs)
    engine.method = nn.parallel.DistributedDataParallel(objective)
    engine.data_loader = Batches(rank)
    engine.optimizer.defaults["lr"] = rates[rank]
    RunCheckpoint(str(output), objective.network, resume).attach(engine)
    try:
        engine.run()
        torch.save({"method": objective.state_dict(), "epoch": engine.state.epoch}, f"{folder}/{rank}.pt")
    except ValueError as error:
        Path(folder, f"{rank}.txt").write_text(str(error))
    dist.barrier()
    os._exit(0)  # see tests/test_engine.py


def two_processes(folder: Path, epochs: int, resume: bool = False, rates: tuple[float, float] = (0.01, 0.01)) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    mp.spawn(train, args=(str(folder), epochs, resume, rates), nprocs=2)


def test_the_first_process_reads_the_checkpoint_for_all(tmp_path: Path) -> None:
    two_processes(tmp_path / "cut", 1)
    assert (tmp_path / "cut" / "0" / "checkpoint.pt").is_file()
    assert not (tmp_path / "cut" / "1").exists()
    two_processes(tmp_path / "cut", 2, resume=True)
    ends = [torch.load(tmp_path / "cut" / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [end["epoch"] for end in ends] == [2, 2]
    first, second = (end["method"] for end in ends)
    assert all(torch.equal(first[n], second[n]) for n, value in first.items() if isinstance(value, torch.Tensor))


def test_processes_that_would_train_different_things_stop_in_one_line(tmp_path: Path) -> None:
    two_processes(tmp_path / "run", 1, rates=(0.01, 0.02))
    for rank in (0, 1):
        message = (tmp_path / "run" / f"{rank}.txt").read_text()
        assert message.startswith("Process 1 trains with learning rate 0.02, the first one with 0.01: ")
    assert not (tmp_path / "run" / "0.pt").exists()


def fail() -> None:
    raise ValueError("the first process's reason")


def share(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = from_first(lambda: f"of {rank}")
    try:
        from_first(fail)
    except ValueError as error:
        found += f", {error}"
    Path(folder, f"{rank}.txt").write_text(found)
    dist.barrier()
    os._exit(0)


def test_values_and_errors_of_the_first_process_are_everybodys(tmp_path: Path) -> None:
    mp.spawn(share, args=(str(tmp_path),), nprocs=2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["of 0, the first process's reason"] * 2


def test_alone_an_error_is_raised_as_it_is() -> None:
    with pytest.raises(ValueError, match="reason"):
        from_first(fail)


def test_only_the_first_of_torchruns_processes_guards_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "checkpoint.pt").touch()
    with pytest.raises(FileExistsError, match="an earlier run"):
        guard_output(str(tmp_path), False)
    monkeypatch.setenv("RANK", "1")
    guard_output(str(tmp_path), False)
