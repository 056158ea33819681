"""Comparison of pseudo-labels with labels that the training does not use."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scripts.data import SemiSupervisedLoader
from scripts.engine import autocast_dtype
from scripts.methods import Objective
from scripts.similarity import majority_labels

__all__ = ["count_pseudo_labels", "hidden_records", "scores", "with_hidden"]

MEASURES = ("coverage", "precision", "recall", "dice", "dice_passing")


def hidden_records(data: Sequence[Mapping[str, Any]], annotated: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The records of ``annotated`` with a label whose image is unlabelled in ``data``.

    Args:
        data: training records of the run.
        annotated: records of the same cases with all labels of the data set.

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


def with_hidden(
    loader: SemiSupervisedLoader, hidden: SemiSupervisedLoader, batches: int
) -> Iterator[dict[str, Tensor]]:
    """Batches of a run in which the unlabelled images have labels, under ``hidden``.

    Args:
        loader: loader of the run.
        hidden: loader of images that are unlabelled in the run, with their labels.
        batches: number of batches, the first ones of both loaders.
    """
    for index, batch in zip(range(batches), hidden, strict=False):
        yield loader.batch(index) | {"unlabeled": batch["image"], "hidden": batch["label"]}


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
