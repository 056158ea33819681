from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from scripts.engine import SemiSupervisedTrainer
from scripts.handlers.checkpoints import RunCheckpoint, guard_output
from scripts.handlers.resume import claim
from scripts.methods import FixMatch
from tests.methods.common import thin_network, trainer

ROOT = Path(__file__).resolve().parents[2]

HOLD = """
import sys, time
from scripts.handlers.resume import claim
lock = claim(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


def engine(folder: Path, resume: bool, epochs: int) -> SemiSupervisedTrainer:
    network = thin_network()
    return trainer(FixMatch(network), epochs, handlers=[RunCheckpoint(str(folder), network, resume)])


def test_one_training_works_in_a_folder_and_a_killed_one_leaves_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for work in (lambda: guard_output(str(folder), True), engine(folder, False, 1).run):
            with pytest.raises(FileExistsError, match="another training runs in this folder"):
                work()
    finally:
        other.kill()
        other.wait()
        if other.stdout:
            other.stdout.close()
    (folder / "tmpab12_xyz").touch()
    (folder / ".0123456789ab.model.pt").touch()
    (folder / "tmp_of_mine").write_text("notes")
    guard_output(str(folder), True)
    engine(folder, False, 1).run()
    left = {path.name for path in folder.iterdir()} - {".lock"}
    weights = {f"{name}.{suffix}" for name in ("model", "model_last") for suffix in ("pt", "json")}
    assert left == {"checkpoint.pt", "tmp_of_mine"} | weights, "what kills leave is swept, nothing else"
    FileLock(folder / ".lock", timeout=0).acquire().lock.release()  # a complete run releases the lock


def test_a_folder_is_claimed_again_by_the_same_process(tmp_path: Path) -> None:
    with claim(tmp_path), claim(tmp_path):
        pass


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("run")
    engine(folder, False, 1).run()
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def cut(content: dict[str, Any], *keys: Any) -> None:
    for key in keys[:-1]:
        content = content[key]
    del content[keys[-1]]


def put(content: dict[str, Any], value: Any, *keys: Any) -> None:
    for key in keys[:-1]:
        content = content[key]
    content[keys[-1]] = value


WEIGHT = next(iter(FixMatch(thin_network()).state_dict()))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c: cut(c, "state", "epoch"),
        lambda c: put(c, "3", "state", "epoch"),
        lambda c: put(c, -1, "state", "epoch"),
        lambda c: put(c, True, "state", "iteration"),
        lambda c: put(c, None, "state", "max_epochs"),
        lambda c: put(c, math.nan, "state", "best_metric"),
        lambda c: put(c, {"code": "x"}, "state", "trained_by"),
        lambda c: put(c, [], "state"),
        lambda c: put(c, [], "method"),
        lambda c: cut(c, "method", WEIGHT),
        lambda c: put(c, torch.zeros(1), "method", "other"),
        lambda c: put(c, torch.zeros(1), "method", WEIGHT),
        lambda c: put(c, c["method"][WEIGHT].double(), "method", WEIGHT),
        lambda c: put(c, 3, "method", WEIGHT),
        lambda c: put(c, c["method"][WEIGHT] * math.nan, "method", WEIGHT),
        lambda c: put(c, 5, "optimizer"),
        lambda c: cut(c, "optimizer", "param_groups"),
        lambda c: put(c, [], "optimizer", "param_groups"),
        lambda c: put(c, "fast", "optimizer", "param_groups", 0, "momentum"),
        lambda c: put(c, [1], "optimizer", "param_groups", 0, "params"),
        lambda c: put(c, {"momentum_buffer": torch.zeros(7)}, "optimizer", "state", 0),
        lambda c: put(c, {}, "optimizer", "state", 10_000),
        lambda c: put(c, [], "optimizer", "state"),
        lambda c: put(c, None, "lr_scheduler"),
        lambda c: cut(c, "lr_scheduler", "last_epoch"),
        lambda c: put(c, "1", "lr_scheduler", "last_epoch"),
        lambda c: put(c, 3, "grad_scaler"),
        lambda c: cut(c, "grad_scaler"),
        lambda c: put(c, 1, "more"),
    ],
)
def test_a_bad_checkpoint_is_refused_in_one_line(
    checkpoint: dict[str, Any], tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    content = {
        name: dict(part)
        if name != "optimizer"
        else {"state": dict(part["state"]), "param_groups": [dict(group) for group in part["param_groups"]]}
        for name, part in checkpoint.items()
    }
    spoil(content)
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=r"checkpoint\.pt: ") as info:
        engine(tmp_path, True, 2).run()
    assert info.value.__cause__ is None
    assert "\n" not in str(info.value)
    assert len(str(info.value)) < 600


def test_methods_of_a_scheduler_are_not_replaced_by_a_checkpoint(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    """PyTorch's schedulers accept any attribute in a state."""
    torch.save({**checkpoint, "lr_scheduler": {**checkpoint["lr_scheduler"], "step": 5}}, tmp_path / "checkpoint.pt")
    engine(tmp_path, True, 2).run()
    assert (tmp_path / "model_last.pt").is_file()
