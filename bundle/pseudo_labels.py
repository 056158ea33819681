"""Quality of a run's pseudo-labels, compared with hidden labels: ``python -m bundle pseudo_labels``."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from numpy.typing import NDArray
from torch import Tensor

from scripts.data import SemiSupervisedLoader, SliceDataset
from scripts.engine import autocast_dtype, flag
from scripts.handlers.checkpoints import RunCheckpoint, data_protocol
from scripts.methods import Objective
from scripts.similarity import majority_labels
from scripts.utils.errors import root_cause
from scripts.utils.files import write_csv
from scripts.utils.tensors import load_tensors

__all__ = ["count_pseudo_labels", "hidden_records", "load_run", "main", "scores"]

MEASURES = ("coverage", "precision", "recall", "dice", "dice_passing")


def main(
    run: str, config_file: str | Sequence[str], batches: int = 20, output: str | None = None, **overrides: Any
) -> None:
    """Compare the pseudo-labels of a run's weights with the hidden labels; print the measures and write them as CSV.

    Views and dropout are as in training; batches and random draws depend on the config's seed, so that settings are
    compared on the same ones. The volumes are preprocessed again, with their labels, into the config's cache.

    Args:
        run: the run's output folder with ``checkpoint.pt``.
        config_file: the config files of the run.
        batches: number of batches.
        output: CSV file, see :func:`scores` for its columns; default ``pseudo_labels.csv`` in ``run``.
        **overrides: config overrides of the run (``--labeled 3``) or to try (``--method#affinity_temperature 1``).
    """
    try:
        if not isinstance(batches, int) or batches < 1:
            raise ValueError(f"batches: expected a whole number of at least 1, found {batches}.")
        checkpoint = Path(run, RunCheckpoint.name)
        if not checkpoint.is_file():
            raise FileNotFoundError(f"run: expected the output folder of a training, found no {checkpoint}.")
        parser = ConfigParser(ConfigParser.load_config_files(config_file))
        if unknown := [key for key in overrides if re.split("#|::", key)[0] not in parser]:
            raise ValueError(f"{', '.join(unknown)}: neither an option of this command nor an id of the config.")
        parser.update(overrides)
        objective = parser.get_parsed_content("method").to(
            parser.get_parsed_content("device"), memory_format=torch.channels_last
        )
        loader = parser.get_parsed_content("train#dataloader")
        iteration = load_run(checkpoint, objective, loader)
        parser["train#dataset#data#labeled"] = None
        records = hidden_records(loader.dataset.data, parser.get_parsed_content("train#dataset#data"))
        settings = (parser.get_parsed_content(key) for key in ("train#preprocessing", "cache_dir", "num_classes"))
        hidden = SemiSupervisedLoader(SliceDataset(records, *settings), loader.batch_size, loader.seed)
        amp = bool(flag(parser.get_parsed_content("amp")))
    except Exception as error:  # MONAI wraps the errors of components, which concern the user's options
        if isinstance(cause := root_cause(error), (ValueError, TypeError, FileNotFoundError)):
            sys.exit(f"error: {cause}")
        raise
    unseen = ({"unlabeled": batch["image"], "hidden": batch["label"]} for batch in hidden)
    drawn = (loader.batch(i) | batch for i, batch in zip(range(batches), unseen, strict=False))
    counts = count_pseudo_labels(objective, drawn, loader.seed, amp)
    rows = [{"kind": kind, **row} for kind, count in counts.items() for row in scores(count)]
    table = [list(rows[0]), *(["" if value is None else str(value) for value in row.values()] for row in rows)]
    path = Path(output) if output else Path(run, "pseudo_labels.csv")
    write_csv(path, rows)
    print(f"{checkpoint}, iteration {iteration}, threshold {objective.threshold}: {batches} batches of ", end="")
    print(f"{hidden.batch_size} of {len(hidden.dataset)} slices, {len(records)} volumes with a hidden label: {path}")
    print("\n".join("".join(f"{cell:>13}" for cell in line) for line in table))


def load_run(path: Path, objective: Objective, loader: SemiSupervisedLoader) -> int:
    """Load an objective's state from a run's checkpoint; returns the checkpoint's iteration.

    Args:
        path: the checkpoint.
        objective: the run's objective.
        loader: the loader of the run's batches.

    Raises:
        ValueError: if the file is not a checkpoint of a run, or belongs to another method, network or data set.
    """
    try:
        content = load_tensors(path)
        objective.load_state_dict(content["method"])
        state = content["state"]
        iteration = int(state["iteration"])
    except Exception as error:
        what = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(f"{path}: is not a checkpoint of the configured method and network: {what}") from None
    configured = data_protocol(loader)
    for name in ("labelled slices", "unlabelled slices", "image size"):
        if state.get(name) != configured[name]:
            raise ValueError(f"{path}: a run with {name} {state.get(name)}, the configuration has {configured[name]}.")
    return iteration


def hidden_records(data: Sequence[Mapping[str, Any]], annotated: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of ``annotated`` whose image is unlabelled in ``data``, without those that lack a label.

    Args:
        data: training records of the run.
        annotated: the same cases with all labels of the data set.

    Raises:
        ValueError: if no record of ``data`` is unlabelled.
        FileNotFoundError: if none of those has a label.
    """
    unlabeled = {str(record["image"]) for record in data if "label" not in record}
    if not unlabeled:
        raise ValueError(f"all {len(data)} training images are labelled and have no pseudo-labels: lower `labeled`.")
    found = [dict(record) for record in annotated if str(record["image"]) in unlabeled and "label" in record]
    if not found:
        raise FileNotFoundError(
            f"none of the {len(unlabeled)} unlabelled images has a label, for example {min(unlabeled)}."
        )
    return found


@torch.no_grad()
def count_pseudo_labels(
    objective: Objective, batches: Iterable[Mapping[str, Tensor]], seed: int, amp: bool = False
) -> dict[str, NDArray[np.int64]]:
    """Count the pixels of the pseudo-labels, in train mode; batch norm's running averages do not change.

    Args:
        objective: makes the pseudo-labels, each kind at its own size; hidden labels are reduced to this size by
            majority.
        batches: batches of :class:`scripts.methods.Objective` with the labels of ``unlabeled`` as ``hidden``.
        seed: seed of views and dropout, which depend on it and the batch's number.
        amp: mixed precision if the objective's device has it, as in training.

    Returns:
        by kind, pixels by [passes the threshold or not (0, 1), pseudo-label, hidden label], ``[2, C, C]``.
    """
    objective.train()
    device = next(objective.parameters()).device
    dtype = autocast_dtype(device, amp)
    buffers = [(buffer, buffer.clone()) for buffer in objective.buffers()]
    C = objective.network.num_classes
    counts: dict[str, NDArray[np.int64]] = {}
    for index, batch in enumerate(batches):
        torch.manual_seed(int(np.random.SeedSequence([seed, index]).generate_state(1)[0]))
        batch = {key: value.to(device, memory_format=torch.channels_last) for key, value in batch.items()}
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None, cache_enabled=False):
            views = objective.weak_views(batch)
            targets = objective.pseudo_labels(views)
        assert views.hidden is not None
        for kind, (label, confidence) in targets.items():
            truth = majority_labels(views.hidden, label.shape[-2:], C)
            cell = ((confidence >= objective.threshold) * C + label) * C + truth
            found = cell.flatten().bincount(minlength=2 * C * C).view(2, C, C).cpu().numpy()
            counts[kind] = counts.get(kind, 0) + found
    for buffer, before in buffers:
        buffer.copy_(before)
    return counts


def scores(counts: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Measures of one kind of pseudo-label from its counts ``[2, C, C]``, see :func:`count_pseudo_labels`.

    Returns:
        for each ``class``, the foreground and all: ``pixels`` of that hidden label and, in [0, 1] or None where there
        is nothing to divide by, ``coverage`` (share of the pixels with that pseudo-label that pass the threshold, as in
        training's log), ``precision`` (share of these with the correct class), ``recall`` (share of the pixels with
        that hidden label that pass and are correct), ``dice`` of the pseudo-label over all pixels and ``dice_passing``
        over those that pass. Dice of several classes is the mean over the existing ones.
    """
    both = np.stack([counts.sum(axis=0), counts[1]])  # over all pixels, over those that pass
    named, truly, right = both.sum(axis=2), both.sum(axis=1), both.diagonal(axis1=1, axis2=2)
    classes = list(range(right.shape[1]))
    rows = []
    with np.errstate(invalid="ignore"):  # 0 / 0 becomes None
        dice = 2 * right / (named + truly)
        for name, group in {**{str(c): [c] for c in classes}, "foreground": classes[1:], "all": classes}.items():
            n, t, r = (x[:, group].sum(axis=1) for x in (named, truly, right))
            d = dice[:, group]
            values = (n[1] / n[0], r[1] / n[1], r[1] / t[0], *(np.nansum(d, axis=1) / (~np.isnan(d)).sum(axis=1)))
            rounded = [None if np.isnan(value) else round(float(value), 6) for value in values]
            rows.append({"class": name, "pixels": int(t[0]), **dict(zip(MEASURES, rounded, strict=True))})
    return rows
