"""Quality of a run's pseudo-labels, compared with hidden labels: ``python -m bundle pseudo_labels``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from scripts.data import SemiSupervisedLoader, SliceDataset
from scripts.engine import flag
from scripts.handlers.checkpoints import RunCheckpoint, data_protocol
from scripts.hidden import count_pseudo_labels, hidden_records, scores, with_hidden
from scripts.methods import Objective
from scripts.utils.errors import root_cause
from scripts.utils.files import write_csv
from scripts.utils.tensors import load_tensors

__all__ = ["load_run", "main"]


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
    counts = count_pseudo_labels(objective, with_hidden(loader, hidden, batches), loader.seed, amp)
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
