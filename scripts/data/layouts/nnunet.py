"""nnU-Net's folder: ``dataset.json``, images ``imagesTr/CASE_0000.nii.gz``, labels ``labelsTr/CASE.nii.gz``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.utils.validation import read_json

__all__ = ["DESCRIPTION", "description_of", "nnunet_lists"]

DESCRIPTION, SPLITS = "dataset.json", "splits_final.json"


def description_of(folder: Path) -> Path | None:
    """The ``dataset.json`` of nnU-Net's folder; None for other folders."""
    is_one = (folder / DESCRIPTION).is_file() and any((folder / "imagesTr").glob("*_0000.*"))
    return folder / DESCRIPTION if is_one else None


def nnunet_lists(description: Path, content: Mapping[str, Any], fold: int = 0) -> dict[str, list[dict[str, str]]]:
    """The contents of nnU-Net's folder as the lists of a datalist.

    Images of ``imagesTr`` without a label in ``labelsTr`` are unlabelled. If there is a ``splits_final.json`` next to
    ``dataset.json``, the fold selects the labelled cases for validation; unlabelled ones are for training.

    Args:
        description: the folder's ``dataset.json``.
        content: its content.
        fold: number of the fold, from 0.

    Returns:
        entries with paths relative to the folder, under ``training``, ``validation`` if there are folds, and ``test``
        if there is ``imagesTs``.

    Raises:
        ValueError: if a case has its channels in several files, which is not supported, a split names a missing case,
            or there is no such fold.
    """
    folder, ending = description.parent, content.get("file_ending", ".nii.gz")
    cases = _cases(folder, "Tr", ending)
    lists = {"training": list(cases.values())}
    if test := list(_cases(folder, "Ts", ending).values()):
        lists["test"] = test
    splits = folder / SPLITS
    if not splits.is_file():
        return lists
    folds = read_json(splits, "folds")
    if fold >= len(folds):
        raise ValueError(f"{splits}: has the folds 0 to {len(folds) - 1}, but no fold {fold}.")
    chosen = folds[fold]
    if missing := [name for part in ("train", "val") for name in chosen[part] if name not in cases]:
        raise ValueError(f"{splits}: names {len(missing)} cases that are not in imagesTr, the first '{missing[0]}'.")
    if both := sorted({*chosen["train"]} & {*chosen["val"]}):
        raise ValueError(f"{splits}: case '{both[0]}' of fold {fold} is in both train and val.")
    others = [entry for name, entry in cases.items() if name not in {*chosen["train"], *chosen["val"]}]
    if lost := [entry["case"] for entry in others if "label" in entry]:
        raise ValueError(f"{splits}: fold {fold} leaves out {len(lost)} labelled cases, the first '{lost[0]}'.")
    training = [cases[name] for name in chosen["train"]] + others
    return {**lists, "training": training, "validation": [cases[name] for name in chosen["val"]]}


def _cases(folder: Path, part: str, ending: str) -> dict[str, dict[str, str]]:
    """The entries of one of nnU-Net's pairs of folders by case, sorted by name."""
    cases: dict[str, dict[str, str]] = {}
    for path in sorted((folder / f"images{part}").glob(f"*{ending}")):
        name = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if path.name.startswith(".") or path.is_dir() or not name:
            continue
        if name[2] != "0000":
            raise ValueError(
                f"'{path}' is another channel of case '{name[1]}': this bundle expects all channels of an image in one "
                "file. Stack them into one, or keep the first one only."
            )
        label = folder / f"labels{part}" / f"{name[1]}{ending}"
        entry = {"image": path.relative_to(folder).as_posix(), "case": name[1]}
        cases[name[1]] = {**entry, "label": label.relative_to(folder).as_posix()} if label.is_file() else entry
    return cases
