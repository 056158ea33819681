"""The demonstration behind ``make demo``: few labels, many unlabelled volumes, two methods, a few minutes."""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from bundle.workflows import ROOT, execute
from scripts.files import replacing
from scripts.provenance import read_record

__all__ = ["main"]

METHODS = ("supervised", "semsim")


def main(output: str = str(ROOT / "demo"), seeds: int | Sequence[int] = (0, 1, 2), **overrides: Any) -> None:
    """Train supervised and SemSim on the same few labels of the phantom cohort, evaluate on its test part, segment.

    A demonstration that was interrupted goes on where it stopped; ``make clean`` removes it.

    Args:
        output: folder of the cohort, the runs, the label maps and the picture.
        seeds: seed or seeds of the runs.
        **overrides: further config overrides of the training, for example ``--train#trainer#max_epochs 10``.
    """
    start = time.perf_counter()
    seeds = (seeds,) if isinstance(seeds, int) else seeds
    folder = Path(output).resolve()
    common = {"bundle_root": str(ROOT), "dataset_dir": str(folder / "cohort"), "cache_dir": str(folder / "cache")}
    common |= overrides
    scores: dict[str, list[float]] = {method: [] for method in METHODS}
    for seed in seeds:
        for method in METHODS:
            run = folder / f"{method}-{seed}"
            files = ["train.json", "demo.json", f"methods/{method}.json"]
            print(f"\n== {method}, seed {seed} ==", flush=True)
            execute("train", files, **common, seed=seed, output_dir=str(run), resume=True)
            evaluation = {"part": "test", "checkpoint": str(run / "model.pt"), "output_dir": str(run / "test")}
            execute("infer", [*files, "evaluate.json"], **common | evaluation)
            scores[method].append(mean_dice(run / "test" / "summary.csv"))

    patient = json.loads((folder / "cohort" / "splits.json").read_text(encoding="utf-8"))["test"][0]
    image = next(path for path in sorted((folder / "cohort" / patient).iterdir()) if "_gt" not in path.name)
    for method in METHODS:
        weights, maps = folder / f"{method}-{seeds[0]}" / "model.pt", folder / f"{method}-labels"
        given = {"bundle_root": str(ROOT), "dataset_dir": str(image), "output_dir": str(maps)}
        execute("infer", ["inference.json"], **given, checkpoint=str(weights))
    picture = draw(image, [folder / f"{method}-labels" for method in METHODS], folder / "demo.png")

    record = read_record(folder / f"{METHODS[0]}-{seeds[0]}" / "model.pt")
    assert record is not None, "training writes it"
    labeled = record["labeled_cases"]
    print(f"\nMean Dice on the phantom's test patients, {labeled} labelled patients, seeds {list(seeds)}:")
    for method, values in scores.items():
        spread = f" +- {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        each = " ".join(f"{value:.3f}" for value in values)
        print(f"  {method:<11} {statistics.mean(values):.3f}{spread}   ({each})")
    print(f"Picture: {picture}. Label maps: {folder}/*-labels. {time.perf_counter() - start:.0f} s in all.")


def mean_dice(summary: Path) -> float:
    """The mean over the foreground classes from an evaluation's summary."""
    with summary.open(newline="", encoding="utf-8") as stream:
        return next(float(row["dsc_mean"]) for row in csv.DictReader(stream) if row["class"] == "mean")


def read(path: Path) -> np.ndarray:
    """The voxels of a NIfTI file, ``[H, W, D]``."""
    file = nib.load(path)
    assert isinstance(file, nib.Nifti1Image)
    return np.asarray(file.dataobj)


def draw(image: Path, maps: Sequence[Path], target: Path) -> Path:
    """A picture of one slice with its label and each method's label map."""
    label = image.with_name(image.name.replace(".nii.gz", "_gt.nii.gz"))
    volume, truth = (read(path) for path in (image, label))
    k = int((truth > 0).sum(axis=(0, 1)).argmax())
    panels: dict[str, np.ndarray | None] = {"image": None, "label": truth[..., k]}
    for method, folder in zip(METHODS, maps, strict=True):
        panels[method] = read(next(folder.rglob("*.nii.gz")))[..., k]
    colors = ListedColormap(["#00000000", "#e6550dcc", "#31a354cc", "#3182bdcc"])
    figure = Figure(figsize=(2.6 * len(panels), 2.9))
    axes = figure.subplots(1, len(panels))
    for axis, (title, overlay) in zip(axes, panels.items(), strict=True):
        axis.imshow(volume[..., k].T, cmap="gray")
        if overlay is not None:
            axis.imshow(overlay.T, cmap=colors, vmin=0, vmax=3, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    figure.tight_layout()
    with replacing(target) as temporary:
        figure.savefig(temporary, dpi=100)
    return target
