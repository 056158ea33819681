"""Description of the training data for the record of the weights."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.data.records import missing_cases
from scripts.utils.provenance import file_digest

__all__ = ["describe_data"]


def describe_data(
    layout: str,
    dataset_dir: str | Path | None = None,
    splits: str | Path | None = None,
    allow_missing: bool = False,
    fold: int = 0,
    class_names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The training data's entries in a record of weights: names and digests, no paths, and no cases of private data.

    Args:
        layout: the data set's layout.
        dataset_dir: its folder, which is not recorded, or its datalist, which also defines the split.
        splits: file of the split; None: the seeded split of the cases in the folder.
        allow_missing: whether cases of the split may be missing from the folder.
        fold: the validation fold.
        class_names: names of the foreground classes by their number as text.

    Returns:
        ``{"data", "split", "split_sha256"}``; also ``fold`` unless it is 0, ``class_names`` if given and, with
        ``allow_missing``, ``missing_cases``: the names of missing cases or, for private data, their number.
    """
    more: dict[str, Any] = {"fold": fold} if fold else {}
    if class_names:
        more["class_names"] = dict(class_names)
    if allow_missing and (missing := missing_cases(layout, str(dataset_dir), splits)):
        more["missing_cases"] = len(missing) if layout == "custom" else missing
    file = dataset_dir if str(dataset_dir).lower().endswith(".json") else splits
    if dataset_dir and not file and (Path(dataset_dir) / "splits_final.json").is_file():  # nnU-Net's
        file = Path(dataset_dir) / "splits_final.json"
    if not file:
        return {"data": layout, "split": "seeded", "split_sha256": None, **more}
    known = os.path.isfile(file)
    return {"data": layout, "split": Path(file).name, "split_sha256": file_digest(file) if known else None, **more}
