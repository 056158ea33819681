"""Trainings that are killed at random moments and resumed: ``python -m tests.kills FOLDER``.

Each method trains once undisturbed, and once with SIGKILLs. Both must end with the same bits in every tensor of
checkpoint and weights, and whatever a kill leaves of them must be a whole file.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scripts.phantoms import make_phantom_cohort
from tests.forks import FORK, run_monai

METHODS = ["fixmatch", "semsim", "mean_teacher", "cross_pseudo_supervision", "bcp"]


def same(one: Any, other: Any) -> bool:
    """Whether two nested contents are equal, tensors to the bit and of one type."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and one == other


def train(method: str, cohort: Path, folder: Path, epochs: int, **killed: Any) -> tuple[int, str]:
    """Begin a training or go on with it; returns exit code and log."""
    options = {
        "dataset_dir": cohort,
        "splits": cohort / "splits.json",
        "cache_dir": cohort.parent / "cache",
        "output_dir": folder,
        "image_size": 32,
        "batch_size": 2,
        "labeled": 2,
        "device": "cpu",
        "val_interval": 2,
        "train#trainer#max_epochs": epochs,
        "train#trainer#epoch_length": 2,
        "resume": True,
    }
    files = f"['configs/train.json','configs/methods/{method}.json']"
    words = ["run", "training", "--config_file", files, *(f"--{name}={value}" for name, value in options.items())]
    return run_monai(words, folder.with_suffix(".log"), **killed)


def contents(folder: Path) -> dict[str, Any]:
    """All that a training wrote but the versions of the code, which a commit in the meantime changes.

    Whatever is there must be whole.
    """
    found = {path.name: torch.load(path, weights_only=True) for path in sorted(folder.glob("[!.]*.pt"))}
    found.get("checkpoint.pt", {}).get("state", {}).get("trained_by", {}).pop("code", None)
    return found


class Stored:
    """Whether a training has stored so many further checkpoints since this object was made."""

    def __init__(self, folder: Path, more: int) -> None:
        self.path, self.more = folder / "checkpoint.pt", more
        self.last = self.file()

    def file(self) -> int:
        return self.path.stat().st_ino if self.path.is_file() else 0

    def __call__(self) -> bool:
        if (now := self.file()) != self.last:
            self.last, self.more = now, self.more - 1
        return self.more <= 0


def kill(method: str, cohort: Path, folder: Path, epochs: int, kills: int, chance: random.Random) -> str:
    """Kill a training so many times; returns what happened, in words that begin with ``equal`` where all is right."""
    whole, killed = folder / f"{method}-whole", folder / f"{method}-killed"
    begin = time.monotonic()
    code, log = train(method, cohort, whole, epochs)
    took = time.monotonic() - begin
    if code != 0:
        return f"the undisturbed run ended with exit code {code}:\n{log[-2000:]}"
    hits: list[int] = []
    tries = 0
    while len(hits) < kills and tries < kills + 5:
        tries += 1
        if len(hits) % 2 == 0:  # at any time, which on a busy machine is mostly before the first epoch has ended
            moment: dict[str, Any] = {"after": chance.uniform(0.02, 0.8) * took}
        else:
            left = epochs - (hits[-1] if hits else 0)
            more = chance.randint(1, max(1, left // 2))
            moment = {"until": Stored(killed, more), "after": chance.uniform(0, 0.1) * took / epochs}
        code, log = train(method, cohort, killed, epochs, end=signal.SIGKILL, **moment)
        if code == 0:  # it was faster than the undisturbed one: again from the beginning
            shutil.rmtree(killed)
            hits.clear()
            continue
        if code != -signal.SIGKILL:
            return f"a run before its kill ended with exit code {code}:\n{log[-2000:]}"
        hits.append(contents(killed).get("checkpoint.pt", {}).get("state", {}).get("epoch", 0))
    code, log = train(method, cohort, killed, epochs)
    if code != 0:
        return f"the resumed run ended with exit code {code}:\n{log[-2000:]}"
    if not same(contents(whole), contents(killed)):
        return f"DIFFERENT after kills in epochs {hits}"
    return f"equal after {len(hits)} kills, with {hits} of {epochs} epochs stored"


def main() -> None:
    """Print a line for each method; exit code 1 where one is not as it should be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    cohort = given.folder.absolute() / "cohort"
    cohort.parent.mkdir(parents=True, exist_ok=True)
    sizes = {"patients": (4, 1, 1), "size": (48, 64), "spacing": (3.0, 3.6), "slices": (3, 4)}
    maker = FORK.Process(target=make_phantom_cohort, args=(cohort,), kwargs=sizes)  # threads must not outlive it
    maker.start()
    maker.join()
    chance = random.Random(given.seed)
    results = {}
    for method in given.methods.split(","):
        results[method] = kill(method, cohort, cohort.parent, given.epochs, given.kills, chance)
        print(f"{method}: {results[method]}", flush=True)
    sys.exit(0 if all(result.startswith("equal") for result in results.values()) else 1)


if __name__ == "__main__":
    main()
