"""Benefit of a site without labels for a site with few: ``python -m bundle.federated.simulation``.

One process trains the sites in turn with MONAI's client and averages their networks, without a federated engine. The
arms are the labelled site alone, both sites together (with :func:`scripts.federated.site_weight` and with equal
weights), and one training on the pooled data. Each network makes the same number of steps.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import fire
import torch

from bundle.federated.global_model import joint_record, write_global_model
from bundle.federated.sites import Site, average, mean_dice
from bundle.workflows import ROOT, execute, keep_settings
from scripts.data.records import read_split
from scripts.utils.files import write_text

__all__ = ["federate", "main"]

PROTOCOL = "cpu.json"


def main(
    dataset_dir: str,
    output: str,
    labeled: int = 3,
    seeds: int | Sequence[int] = (1, 2, 3),
    rounds: int = 10,
    steps: int = 150,
    method: str = "fixmatch",
    splits: str = str(ROOT / "scripts" / "data" / "splits" / "acdc.json"),
    **options: Any,
) -> None:
    """Train all arms and print the mean DSC of their last networks over the validation cases.

    An arm that already has a result is not trained again; other options need another folder.

    Args:
        dataset_dir: the data set's folder.
        output: folder of the runs and of ``results.json``.
        labeled: number of labelled cases, the first of the training list; the second site has all others.
        seeds: seeds of the trainings.
        rounds: rounds of the federation.
        steps: steps of a site in a round.
        method: overlay of the unlabelled site's objective; the labelled site trains supervised.
        splits: file of the split.
        **options: further values by config id, for all arms and the evaluation.
    """
    folder = Path(output).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"labeled": labeled, "rounds": rounds, "steps": steps, "method": method, "splits": str(splits)}
    keep_settings(folder, {**settings, "dataset_dir": str(dataset_dir), **options})
    train = read_split(splits)["train"]
    # no site has the validation cases: they select no weights
    parts = {"a": train[:labeled], "b": train[labeled:], "pooled": train}
    for name, cases in parts.items():
        write_text(folder / f"{name}.json", json.dumps({"train": cases, "val": []}))
    common = {"bundle_root": str(ROOT), "dataset_dir": str(dataset_dir), "cache_dir": str(folder / "cache"), **options}
    results: dict[str, dict[str, float]] = {}
    for seed in (seeds,) if isinstance(seeds, int) else seeds:
        arms = _arms(folder, {**common, "seed": seed}, method, labeled, rounds, steps)
        for arm, work in arms.items():
            run = folder / f"{arm}-{seed}"
            if not (run / "evaluation" / "summary.csv").is_file():
                shutil.rmtree(run, ignore_errors=True)
                work(run)
                where = {"checkpoint": str(run / "model.pt"), "output_dir": str(run / "evaluation")}
                execute("infer", ["train.json", PROTOCOL, "evaluate.json"], splits=str(splits), **common, **where)
            results.setdefault(arm, {})[str(seed)] = mean_dice(run / "evaluation")
            write_text(folder / "results.json", json.dumps(results, indent=4))
    for arm, found in results.items():
        shown = ", ".join(f"{value:.3f}" for value in found.values())
        print(f"{arm:<16} {mean(found.values()):.3f} ({shown})")


def federate(sites: Sequence[Site], rounds: int, equal: bool = False) -> dict[str, torch.Tensor]:
    """Train by federated averaging; return the global network.

    Args:
        sites: the sites; all begin with the first one's network.
        rounds: number of rounds.
        equal: average with equal weights, not with :func:`scripts.federated.site_weight`.
    """
    network = sites[0].network
    for _ in range(rounds):
        states, weights = zip(*(site.train(network) for site in sites), strict=True)
        network = average(states, [1.0] * len(sites) if equal else weights)
    return network


def _arms(
    folder: Path, common: Mapping[str, Any], method: str, labeled: int, rounds: int, steps: int
) -> dict[str, Callable[[Path], None]]:
    """The work of each arm by name: train in a folder and write ``model.pt`` there."""
    length = {"train#trainer#epoch_length": steps}

    def train(run: Path, part: str, name: str) -> None:
        files = ["train.json", PROTOCOL, f"methods/{name}.json"]
        options = {"splits": str(folder / f"{part}.json"), "labeled": labeled, "epochs": rounds, **length}
        execute("train", files, output_dir=str(run), **common, **options)

    def federated(run: Path, equal: bool) -> None:
        sites = [
            Site(
                part,
                [PROTOCOL, f"methods/{name}.json"],
                splits=str(folder / f"{part}.json"),
                labeled=count,
                output_dir=str(run / part),
                rounds=rounds,
                **common,
                **length,
            )
            for part, name, count in (("a", "supervised", labeled), ("b", method, 0))
        ]
        records = [run / part / "model_last.json" for part in ("a", "b")]
        network = federate(sites, rounds, equal)
        write_global_model(network, joint_record(records), run / "model.pt")

    return {
        "A alone": lambda run: train(run, "a", "supervised"),
        "A + B": lambda run: federated(run, equal=False),
        "A + B, equal": lambda run: federated(run, equal=True),
        "pooled": lambda run: train(run, "pooled", method),
    }


if __name__ == "__main__":
    fire.Fire(main)
