from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bundle.share.pack import main as pack
from scripts.networks import UNet
from scripts.phantoms import make_phantom_cohort
from scripts.utils.provenance import write_record


def pytest_configure() -> None:
    """Parallel test processes share the cores: each, with its children, has its share of the threads."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, torch.get_num_threads() // int(workers))
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Seed all random generators, so that every run of a test draws the same numbers."""
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for PyTorch, whose results do not depend on their number then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small phantom cohort, 6 train, 2 val and 2 test patients, with its ``splits.json``. Do not write in it."""
    root = tmp_path_factory.mktemp("phantom") / "cohort"
    make_phantom_cohort(root, patients=(6, 2, 2), size=(56, 72), spacing=(3.0, 3.6), slices=(3, 4))
    return root


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A folder of real data by its name; without it the test is skipped."""

    def find(name: str) -> Path:
        if not (root := os.environ.get("SEMSIM_DATA")):
            pytest.skip("SEMSIM_DATA not set")
        if not (folder := Path(root) / name).is_dir():
            pytest.skip(f"no {name} folder in SEMSIM_DATA={root}")
        return folder

    return find


@pytest.fixture(scope="session")
def real_acdc(real_data: Callable[[str], Path]) -> Path:
    """The real ACDC folder."""
    return real_data("acdc")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make weights with a record: ``trained("isic", in_channels=3, num_classes=2)`` returns a new file."""

    def make(data: str = "acdc", in_channels: int = 1, num_classes: int = 4, **record: Any) -> Path:
        torch.manual_seed(0)
        path = tmp_path_factory.mktemp("run") / "model.pt"
        torch.save(UNet(in_channels, num_classes).state_dict(), path)
        known = {"data": data, "split": "splits.json", "method": "SemSim", "fusion": "SpatialAwareFusion", "seed": 0}
        known |= {"iteration": 20, "iterations": 40, "labeled_cases": 2, "labeled_slices": 12, "image_size": 48}
        write_record(path, {**known, "synthetic": True, "validation_dice": 0.5, **record})
        return path

    return make


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory, trained: Callable[..., Path]) -> Path:
    """Archive of a packed ACDC bundle, next to its folder. Do not write in it."""
    output = tmp_path_factory.mktemp("packed")
    pack("acdc", str(trained()), str(output))
    return next(output.glob("*.zip"))
