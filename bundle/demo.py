"""The demonstration behind ``make demo``: one labelled patient, with and without the unlabelled ones, a few minutes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from bundle.compare import command as compare
from bundle.compare.runs import PLAIN, Run
from bundle.report.evaluation import MEAN, read_scores
from bundle.workflows import CONFIGS, ROOT, execute
from scripts.utils.files import replacing
from scripts.utils.threads import thread_count

__all__ = ["main"]

METHODS = ("fixmatch", "supervised")  # the longer one first, so that the cores finish together
# A network this young is sure of nothing but background: at .95, the threshold of longer trainings, only that would be
# taught.
THRESHOLD = {"method#threshold": 0.5}


def main(output: str = str(ROOT / "demo"), seeds: int | Sequence[int] = (0, 1, 2), **overrides: Any) -> None:
    """Train by the recipe on one labelled phantom patient, with and without the others' images, evaluate, segment.

    The picture shows the test volume, of all seeds, whose gain in Dice by the unlabelled images is the median.

    An interrupted demonstration continues where it stopped; ``make clean`` removes it.

    Args:
        output: folder of the cohort, the runs, the label maps and the picture.
        seeds: seed or seeds of the runs.
        **overrides: further config overrides of the training, for example ``--train#trainer#max_epochs 10``.
    """
    start = time.perf_counter()
    seeds = (seeds,) if isinstance(seeds, int) else tuple(seeds)
    folder = Path(output).resolve()
    places = {"dataset_dir": str(folder / "cohort"), "cache_dir": str(folder / "cache")}
    # steps this small gain little from a second thread: one run per core is faster overall
    jobs = 1 if torch.cuda.is_available() else min(thread_count(), len(METHODS) * len(seeds))
    configs = [str(CONFIGS / name) for name in ("recipe.json", "demo.json")]
    options = places | THRESHOLD | overrides
    compare.main(METHODS, seeds, config_file=configs, output=output, part="test", jobs=jobs, **options)

    runs = {(method, seed): folder / Run(method, PLAIN, seed, {}).name for method in METHODS for seed in seeds}
    seed, case = median_case(*({seed: runs[method, seed] / "test-best" for seed in seeds} for method in METHODS))
    image = folder / "cohort" / f"{case}.nii.gz"
    for method in METHODS:
        weights = runs[method, seed] / "model.pt"
        where = {"checkpoint": str(weights), "output_dir": str(folder / f"{method}-labels")}
        execute("infer", ["inference.json"], bundle_root=str(ROOT), dataset_dir=str(image), **where)
    picture = draw(image, {method: folder / f"{method}-labels" for method in reversed(METHODS)}, folder / "demo.png")
    print(f"\nPicture: {picture}. Label maps: {folder}/*-labels. {time.perf_counter() - start:.0f} s in all.")


def median_case(evaluations: Mapping[int, Path], others: Mapping[int, Path]) -> tuple[int, str]:
    """Seed and case whose difference in mean Dice is the median over all of both; evaluations by seed."""
    differences = []
    for seed, folder in evaluations.items():
        first, second = (read_scores(path) for path in (folder, others[seed]))
        gains = first.values[MEAN]["dsc"] - second.values[MEAN]["dsc"]
        differences += [(gain, seed, case) for gain, case in zip(gains, first.cases, strict=True)]
    _, seed, case = sorted(differences)[len(differences) // 2]
    return seed, case


def read(path: Path) -> np.ndarray:
    """The voxels of a NIfTI file, ``[H, W, D]``."""
    file = nib.load(path)
    assert isinstance(file, nib.Nifti1Image)
    return np.asarray(file.dataobj)


def draw(image: Path, maps: Mapping[str, Path], target: Path) -> Path:
    """A picture of one slice with its label and each method's label map, from its folder."""
    label = image.with_name(image.name.replace(".nii.gz", "_gt.nii.gz"))
    volume, truth = (read(path) for path in (image, label))
    k = int((truth > 0).sum(axis=(0, 1)).argmax())
    panels: dict[str, np.ndarray | None] = {"image": None, "label": truth[..., k]}
    for method, folder in maps.items():
        panels[method] = read(next(folder.rglob(image.name.replace(".nii.gz", "_seg.nii.gz"))))[..., k]
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
