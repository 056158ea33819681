"""Soak test: ``make soak MINUTES=30``.

Trainings, evaluations and inferences over synthetic cohorts, with random options, some of them invalid, and with random
failures: kills, interruptions, damaged files, a full disk. Every run must succeed (with valid results) or be refused in
one line, and a killed run must complete after it is resumed. Anything else is a failure: its command and log are kept,
and the exit code is 1.

Every run is a forked process, so that PyTorch and MONAI are loaded once. POSIX only. The full disk is a small tmpfs
where the user may mount one (root on Linux), else a limit of the files' size.
"""

from __future__ import annotations

import argparse
import csv
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image

from scripts.data.images import find_images
from scripts.phantoms import make_phantom_cohort
from scripts.utils.tensors import load_state
from tests.forks import EARLY, FORK, run_monai

METHODS = ["supervised", "fixmatch", "semsim", "mean_teacher", "cross_pseudo_supervision", "bcp", "unimatch", "urpc"]
SIZES: dict[str, dict[str, Any]] = {
    "acdc": {"size": (48, 64), "spacing": (3.0, 3.6), "slices": (3, 4)},
    "promise12": {"size": (48, 64), "slices": (3, 4)},
    "isic": {"size": (48, 64)},
}
WRONG = {
    "image_size": ["abc", "0", "-32", "1.5", "$1/0"],
    "batch_size": ["0", "many"],
    "learning_rate": ["0", "fast", "nan"],
    "seed": ["-1", "x"],
    "num_classes": ["1", "3", "x"],
    "labeled": ["0", "99", "all"],
    "device": ["x", "cuda:99"],
    "dataset_dir": ["nowhere", "2018", "a#b"],
    "splits": ["nowhere.json"],
    "labelled": ["1"],
    "train#trainer#max_epochs": ["0", "-3", "two"],
    "resume": ["nowhere.pt", "maybe"],
    "in_channels": ["2", "0"],
}


class Soak:
    """Random runs in a folder, and their outcomes.

    Args:
        folder: folder of cohorts, runs and logs.
        seed: seed of the random choices.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.outcomes: Counter[tuple[str, str, str]] = Counter()
        self.failures: list[str] = []
        self.number = 0
        self.trained: list[tuple[str, Path]] = []
        for kind, sizes in SIZES.items():
            cohort = FORK.Process(
                target=make_phantom_cohort,
                args=(folder / kind,),
                kwargs={"patients": (4, 1, 1), "kind": kind, **sizes},
            )
            cohort.start()
            cohort.join()

    def run(self, words: list[str], **options: Any) -> tuple[int, str]:
        """Run a command line, see :func:`tests.forks.run_monai`, into a log of its own."""
        self.number += 1
        return run_monai(words, self.folder / f"log-{self.number}.txt", **options)

    def judge(self, action: str, mishap: str, words: list[str], code: int, log: str, fault: str) -> None:
        """Classify a run that ended by itself.

        Args:
            action: the action.
            mishap: the injected failure.
            words: the command line.
            code: its exit code.
            log: its output.
            fault: fault of its results; empty if there is none or it has no results.
        """
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "")
        refused = code == 1 and "Traceback" not in log and any(x.startswith("error: ") for x in log.splitlines())
        interrupted = (
            code in (-signal.SIGINT, 130) and "Traceback" not in log and last in ("error: interrupted.", EARLY)
        )
        if code == 0 and not fault:
            outcome = "finished right"
        elif refused or interrupted:
            outcome = "refused in one line"
        else:
            outcome = "FAILED"
            self.failures.append(f"{action}, {mishap}: exit code {code}, {fault or last[:200]}\n    {' '.join(words)}")
            (self.folder / f"failure-{len(self.failures)}.txt").write_text(f"{' '.join(words)}\n\n{log}")
        self.outcomes[action, mishap, outcome] += 1

    @contextmanager
    def full_disk(self, size: int) -> Iterator[tuple[Path, int | None]]:
        """A folder for outputs on a disk that holds this many bytes.

        Yields:
            the folder, and the limit of a file's size to run with: None on a small disk, where it cannot be mounted
            ``size``.
        """
        folder = self.folder / f"disk-{self.number}"
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={max(size, 4096)}", "tmpfs", folder]  # 0 is no limit to mount
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            yield folder, size
            return
        try:
            yield folder, None
        finally:
            subprocess.run(["umount", folder], check=True)

    # --- actions -----------------------------------------------------------------------------------------------------

    def spoiled(self, kind: str) -> Path:
        """A copy of a cohort with one of its images or labels damaged."""
        copy = Path(shutil.copytree(self.folder / kind, self.folder / f"{kind}-{self.number}"))
        files = [
            path for path in sorted(copy.rglob("*")) if path.suffix in (".gz", ".raw", ".mhd", ".mha", ".png", ".jpg")
        ]
        self.spoil(self.random.choice(files))
        return copy

    def spoil(self, path: Path) -> None:
        """Flip some bits of a file, cut it off, empty it or remove it."""
        content = bytearray(path.read_bytes())
        kind = self.random.choice(["flip", "cut", "empty", "gone"])
        if kind == "gone":
            path.unlink()
            return
        if kind == "flip":
            for _ in range(self.random.randint(1, 20)):
                content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        path.write_bytes(b"" if kind == "empty" else content[: len(content) // 2] if kind == "cut" else content)

    def train(self) -> None:
        """One training, possibly with an injected failure."""
        kind, method = self.random.choice(list(SIZES)), self.random.choice(METHODS)
        mishap = self.random.choice(
            ["none", "killed", "interrupted", "wrong option", "damaged data", "full disk", "damaged checkpoint"]
        )
        cohort = self.spoiled(kind) if mishap == "damaged data" else self.folder / kind
        folder = self.folder / f"run-{self.number}"
        options = {
            "dataset_dir": cohort,
            "splits": cohort / "splits.json",
            "cache_dir": self.folder / "cache",
            "output_dir": folder,
            "image_size": self.random.choice([32, 48]),
            "batch_size": self.random.choice([1, 2, 3]),
            "labeled": self.random.choice([1, 2]),
            "seed": self.random.randint(0, 99),
            "device": "cpu",
            "train#trainer#max_epochs": self.random.choice([1, 2]),
            "train#trainer#epoch_length": self.random.choice([1, 2]),
        }
        if mishap == "wrong option":
            name = self.random.choice(list(WRONG))
            options[name] = self.random.choice(WRONG[name])
        files = f"['configs/train.json','configs/datasets/{kind}.json','configs/methods/{method}.json']"
        words = ["run", "--config_file", files, *(f"--{name}={value}" for name, value in options.items())]
        after = self.random.uniform(0.5, 12)
        if mishap in ("killed", "interrupted"):
            end = signal.SIGKILL if mishap == "killed" else signal.SIGINT
            code, log = self.run(words, end=end, after=after)
            if mishap == "interrupted" and code != 0:
                self.judge("train", mishap, words, code, log, "")
            words = [*words, "--resume=True"]
            mishap = f"{mishap}, resumed"
        elif mishap == "damaged checkpoint":
            self.run(words)
            if (folder / "checkpoint.pt").is_file():
                self.spoil(folder / "checkpoint.pt")
            words = [*words, "--resume=True"]
        if mishap == "full disk":
            with self.full_disk(self.random.choice([0, 100_000, 3_000_000, 10_000_000])) as (disk, limit):
                words = moved(words, {"cache_dir": disk / "cache", "output_dir": disk / "run"})
                code, log = self.run(words, limit=limit)
                self.judge("train", mishap, words, code, log, "")
            return
        code, log = self.run(words)
        fault = ""
        if code == 0:
            try:
                load_state(folder / "model.pt")
                load_state(folder / "model_last.pt")
                self.trained.append((kind, folder / "model.pt"))
            except (ValueError, FileNotFoundError) as error:
                fault = str(error)
            if left := [path.name for path in folder.iterdir() if path.name.startswith((".0", "tmp"))]:
                fault = f"left behind: {left}"
            if mishap == "wrong option":
                fault = "a wrong option passed"
        self.judge("train", mishap, words, code, log, fault)

    def use(self) -> None:
        """One inference or evaluation with trained weights, possibly with an injected failure."""
        kind, weights = self.random.choice(self.trained)
        action = self.random.choice(["infer", "evaluate"])
        mishap = self.random.choice(["none", "damaged data", "damaged weights", "damaged record", "full disk"])
        cohort = self.spoiled(kind) if mishap == "damaged data" else self.folder / kind
        output = self.folder / f"{action}-{self.number}"
        if mishap in ("damaged weights", "damaged record"):
            copy = Path(shutil.copytree(weights.parent, self.folder / f"weights-{self.number}"))
            self.spoil(copy / ("model.pt" if mishap == "damaged weights" else "model.json"))
            weights = copy / "model.pt"
        options: dict[str, Any] = {"dataset_dir": cohort, "output_dir": output, "checkpoint": weights, "device": "cpu"}
        files = ["inference.json", f"datasets/{kind}.json"]
        if action == "evaluate":
            files = ["train.json", f"datasets/{kind}.json", "evaluate.json"]
            record = (
                weights.with_suffix(".json").read_text(errors="replace")
                if weights.with_suffix(".json").is_file()
                else ""
            )
            options |= {
                "splits": cohort / "splits.json",
                "part": "test",
                "image_size": 32 if '"image_size": 32' in record else 48,
            }
        named = "[" + ",".join(f"'configs/{name}'" for name in files) + "]"
        words = ["run", "--config_file", named, *(f"--{name}={value}" for name, value in options.items())]
        if mishap == "full disk":
            with self.full_disk(0) as (disk, limit):
                words = moved(words, {"output_dir": disk / "output"})
                code, log = self.run(words, limit=limit)
                self.judge(action, mishap, words, code, log, "a full disk passed" if code == 0 else "")
            return
        code, log = self.run(words)
        fault = ""
        if code == 0:
            fault = self.wrong_maps(kind, cohort, output) if action == "infer" else self.wrong_scores(output)
            if mishap == "damaged weights":
                fault = fault or "damaged weights passed"
        self.judge(action, mishap, words, code, log, fault if mishap != "damaged weights" or code == 0 else "")

    def wrong_maps(self, kind: str, cohort: Path, output: Path) -> str:
        """Fault of the label maps of a cohort's images; empty if there is none."""
        for record in find_images(cohort):
            image = Path(record["image"])
            name = image.name.partition(".")[0]
            found = list(output.rglob(f"{name}_seg.*"))
            if len(found) != 1:
                return f"{len(found)} label maps of {name}"
            shapes = [array.shape[:2] if kind == "isic" else array.shape for array in map(voxels, (image, found[0]))]
            if shapes[0] != shapes[1]:
                return f"{found[0].name} has shape {shapes[1]}, its image {shapes[0]}"
        return ""

    def wrong_scores(self, output: Path) -> str:
        """Fault of an evaluation; empty if there is none."""
        with (output / "summary.csv").open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        scores = [float(row["dsc_mean"]) for row in rows]
        return "" if rows[-1]["class"] == "mean" and all(0 <= score <= 1 for score in scores) else f"scores {scores}"

    def step(self) -> None:
        """One random action."""
        if self.trained and self.random.random() < 0.5:
            self.use()
        else:
            self.train()

    def table(self) -> str:
        """The outcomes by action and mishap."""
        lines = [f"{'action':<10}{'mishap':<24}{'outcome':<22}{'runs':>5}"]
        lines += [f"{a:<10}{m:<24}{o:<22}{count:>5}" for (a, m, o), count in sorted(self.outcomes.items())]
        return "\n".join([*lines, *self.failures])


def moved(words: list[str], folders: dict[str, Path]) -> list[str]:
    """A command line with other folders for some of its options."""
    kept = [word for word in words if word.partition("=")[0].removeprefix("--") not in folders]
    return [*kept, *(f"--{name}={folder}" for name, folder in folders.items())]


def voxels(path: Path) -> np.ndarray:
    """An image's voxels, in the order of its file."""
    if path.name.endswith((".nii", ".nii.gz")):
        return np.asarray(nib.load(path).dataobj)  # type: ignore[attr-defined]
    if path.suffix in (".png", ".jpg"):
        return np.asarray(Image.open(path))
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def main() -> None:
    """Run for some minutes; print the outcomes by kind, and exit with code 1 if anything failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0, help="other choices for another seed")
    parser.add_argument(
        "--output", type=Path, help="folder that is kept; default: a temporary one, kept after a failure"
    )
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-")) if given.output is None else given.output.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    soak, end = Soak(folder, given.seed), time.monotonic() + 60 * given.minutes
    while time.monotonic() < end:
        soak.step()
    print(soak.table())
    if soak.failures:
        sys.exit(f"\n{len(soak.failures)} runs failed: commands and logs in {folder}")
    if given.output is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
