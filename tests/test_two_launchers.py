"""Two machines without a shared disk: two ``torchrun`` launchers on this one, each with data and folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bundle.workflows import ROOT

LIMIT = 400  # seconds; two launchers that wait for one another would do so for minutes to days
EPOCHS = 3

pytestmark = pytest.mark.skipif("SEMSIM_SLOW" not in os.environ, reason="SEMSIM_SLOW not set: six processes start")


def start(phantom: Path, folder: Path, labeled: tuple[int, int] = (2, 2), **options: object) -> list[subprocess.Popen]:
    """Both launchers, each in a process group of its own; output goes to ``folder/NODE.txt``."""
    overlay = folder / "overlay.json"
    weights = "$torch.save(@network.state_dict(), @output_dir + '/own.pt')"
    overlay.write_text(json.dumps({"+imports": ["$import torch"], "run": ["$@train#trainer.run()", weights]}))
    files = ["configs/train.json", "configs/multi_gpu_train.json", "configs/methods/fixmatch.json", str(overlay)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launchers = []
    for node in (0, 1):
        data = folder / f"data{node}"
        if not data.exists():
            shutil.copytree(phantom, data)
        given = {
            "config_file": str(files),
            "dataset_dir": data,
            "splits": data / "splits.json",
            "cache_dir": folder / f"cache{node}",
            "output_dir": folder / f"run{node}",
            "labeled": labeled[node],
            "image_size": 32,
            "batch_size": 2,
            "epochs": EPOCHS,
            "train#trainer#epoch_length": 2,
            **options,
        }
        line = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={node}"]
        line += ["--master_addr=127.0.0.1", f"--master_port={port}", "--nproc_per_node=1", "-m", "monai.bundle", "run"]
        line += ["training", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]
        (folder / f"run{node}").mkdir(exist_ok=True)
        with (folder / f"{node}.txt").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
            launchers.append(
                subprocess.Popen(
                    line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
                )
            )
    return launchers


def kill(launchers: list[subprocess.Popen]) -> None:
    for launcher in launchers:
        if launcher.poll() is None:
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()


def wait(launchers: list[subprocess.Popen], until: Callable[[], bool] = lambda: False) -> None:
    """Until something is so or both have ended; who takes too long is killed and fails the test."""
    end = time.monotonic() + LIMIT
    try:
        while not until() and any(launcher.poll() is None for launcher in launchers):
            assert time.monotonic() < end, "the launchers hang"
            time.sleep(0.2)
    except AssertionError:
        kill(launchers)
        raise


def test_both_are_killed_and_resume_from_the_first_ones_checkpoint(phantom: Path, tmp_path: Path) -> None:
    launchers = start(phantom, tmp_path)
    checkpoint = tmp_path / "run0" / "checkpoint.pt"
    wait(launchers, checkpoint.is_file)
    kill(launchers)
    assert checkpoint.is_file(), (tmp_path / "0.txt").read_text()
    assert not (tmp_path / "run0" / "model_last.pt").exists(), "the training was over before it was killed"
    again = start(phantom, tmp_path, resume=True)
    wait(again)
    logs = [(tmp_path / f"{node}.txt").read_text() for node in (0, 1)]
    assert [launcher.returncode for launcher in again] == [0, 0], logs
    assert all("Resumed from" in log for log in logs)
    first, second = (torch.load(tmp_path / f"run{node}" / "own.pt", weights_only=True) for node in (0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert not (tmp_path / "run1" / "checkpoint.pt").exists()


def test_both_stop_in_one_line_where_their_options_differ(phantom: Path, tmp_path: Path) -> None:
    launchers = start(phantom, tmp_path, labeled=(2, 3))
    wait(launchers)
    assert all(launcher.returncode for launcher in launchers)
    for node in (0, 1):
        log = (tmp_path / f"{node}.txt").read_text()
        assert "data, code and options must be the same on every machine" in log, log
