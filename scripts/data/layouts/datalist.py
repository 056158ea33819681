"""Datalists: the records of a data set in one JSON file, in the Medical Decathlon's format."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.data.checks import add_or_raise
from scripts.data.layouts.nnunet import DESCRIPTION, description_of, nnunet_lists
from scripts.utils.files import as_stored
from scripts.utils.validation import Fault, faults_of, parse_json, read_text

__all__ = ["PARTS", "named_classes", "read_class_values", "read_datalist", "read_slice_axis"]

PARTS = {"training": "train", "validation": "val", "test": "test", "testing": "test"}
"""A datalist's keys and their parts of the split."""

_FOLDED = {"training": False, "validation": True}


def read_datalist(
    path: str | Path, faults: list[str] | None = None, only: str | None = None, labels: bool = True, fold: int = 0
) -> dict[str, list[dict[str, str]]]:
    """Read a datalist, or nnU-Net's folder with this ``dataset.json``.

    The file is checked against its schema first (:mod:`scripts.utils.validation`). Each entry of its lists is
    ``{"image": path, "label": path, "case": name}``, or the image's path alone. An image without a label has no
    ``label``; a list of masks, one for each class, is refused, because ``bundle prepare`` merges them. The images of a
    ``case`` stay in one part of a split; by default each image is a case. Paths are relative to the JSON's folder.
    Without a ``validation`` list, and if entries of ``training`` have a number ``fold`` as in MONAI, one fold is for
    validation. Other keys of an entry or of the file are ignored.

    Args:
        path: JSON file with at least one of the keys of :data:`PARTS`.
        faults: if given, faults of entries are added to this list, and the valid entries are returned.
        only: a part; the lists of other parts are ignored.
        labels: whether labels are read; otherwise they may be missing.
        fold: the validation fold.

    Returns:
        records with absolute paths by part: ``train``, ``val`` and ``test``, those that the file has.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a datalist, or has folds but not this one.
        FaultsError: all faults of its entries: a missing file, a duplicate image, a label of two images, a case in two
            parts.
    """
    path = Path(os.path.abspath(path))
    content, wrong = _content(path)
    if nnunet := path.name == DESCRIPTION and description_of(path.parent) is not None:
        content, wrong = {**nnunet_lists(path, content, fold)}, []
    torn = {fault.where[:2] for fault in wrong}
    found = [f"{path}: {fault.what}" for fault in wrong if only is None or PARTS[str(fault.where[0])] == only]
    lists = {
        key: [entry for number, entry in enumerate(content[key]) if (key, number) not in torn]
        for key in PARTS
        if key in content
    }
    if not nnunet:
        lists = _by_fold(lists, fold, path)
    parts: dict[str, list[dict[str, str]]] = {}
    part_of_case: dict[str, str] = {}
    seen: dict[str, str] = {}
    owners: dict[str, str] = {}
    for key, part in PARTS.items():
        if key not in lists or part != (only or part):
            continue
        records = parts.setdefault(part, [])
        for entry in lists[key]:
            if (record := _record(path, entry, labels, found)) is None:
                continue
            other = seen.get(record["image"])
            seen[record["image"]] = key
            other_part = part_of_case.setdefault(record["case"], part)
            if other:
                where = f"in {key} twice" if other == key else f"in {other} and in {key}"
                found.append(f"{path}: '{record['image']}' is {where}.")
                continue
            if other_part != part:
                found.append(
                    f"{path}: case '{record['case']}' has images in '{other_part}' and in '{part}'; a case belongs to "
                    "one part."
                )
            image, label = record["image"], record.get("label")
            if label and (owner := owners.setdefault(label, image)) != image:
                found.append(f"{path}: '{owner}' and '{image}' have the same label '{label}'.")
            records.append(record)
    add_or_raise(found, faults)
    return parts


def read_class_values(path: str | Path) -> tuple[dict[str, str], list[float] | None]:
    """The classes in a datalist.

    Args:
        path: see :func:`read_datalist`.

    Returns:
        ``labels``, the names of the classes by their number, ``{}`` without names; and ``label_values``, the value of
        each class in label files, None if it is the class's number. nnU-Net's ``{"bone": 1}`` is inverted.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a datalist, or names and values violate its schema.
    """
    content, _ = _content(Path(os.path.abspath(path)))
    return _by_number(content.get("labels") or {}, path), content.get("label_values")


def read_slice_axis(path: str | Path) -> str | None:
    """The slice axis in a datalist, see :mod:`scripts.data.axis`; None if it has none.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it is not a datalist, or the axis is invalid.
    """
    content, _ = _content(Path(os.path.abspath(path)))
    axis: str | None = content.get("slice_axis")
    return axis


def _by_number(labels: dict[str, Any], path: str | Path) -> dict[str, str]:
    """The names of classes by their number as text, from both formats.

    Args:
        labels: ``{"1": "bone"}``, or nnU-Net's ``{"bone": 1}``.
        path: the file, for messages.

    Raises:
        ValueError: if the formats are mixed, two classes have the same name, or one is nnU-Net's ``ignore``.
    """
    names: dict[str, str] = {}
    for key, value in labels.items():
        number, name = (str(value), key) if isinstance(value, int) else (key, value)
        if not re.fullmatch(r"0|[1-9]\d{0,2}", number):
            raise ValueError(
                f"{path}: labels: expected names by the number of their class, found {number!r}: {name!r}."
            )
        if name == "ignore":
            raise ValueError(f"{path}: labels: 'ignore' is not supported: every pixel needs a class.")
        if number in names or name in names.values():
            raise ValueError(f"{path}: labels: class {number} or the name {name!r} is a duplicate.")
        names[number] = name
    return names


def named_classes(class_names: Mapping[Any, str], dataset_dir: str | Path) -> dict[str, str]:
    """The names of the foreground classes by their number as text.

    Args:
        class_names: names in the configuration, which override those of a datalist.
        dataset_dir: folder of a data set, or its datalist.
    """
    path = description_of(Path(dataset_dir)) or Path(dataset_dir)
    listed, _ = read_class_values(path) if path.suffix.lower() == ".json" else ({}, None)
    listed.pop("0", None)
    return {**listed, **{str(number): name for number, name in class_names.items()}}


def _by_fold(lists: dict[str, list[Any]], fold: int, path: Path) -> dict[str, list[Any]]:
    """The lists, with the labelled entries of a fold moved from ``training`` to ``validation`` if that is missing."""
    training = lists.get("training", [])
    folds = {entry["fold"] for entry in training if isinstance(entry, dict) and "fold" in entry}
    if "validation" in lists or not folds:
        return lists
    if fold not in folds:
        raise ValueError(f"{path}: has the folds {', '.join(map(str, sorted(folds)))}, but no fold {fold}.")
    chosen = [isinstance(entry, dict) and entry.get("fold") == fold and "label" in entry for entry in training]
    parts = {key: [e for e, val in zip(training, chosen, strict=True) if val is own] for key, own in _FOLDED.items()}
    return {**lists, **parts}


def _content(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """The JSON object of a datalist, with at least one list, and the faults of its entries."""
    if not path.is_file():
        raise FileNotFoundError(f"datalist '{path}' does not exist.")
    content = parse_json(read_text(path), path, "datalist")
    found = faults_of(content, "datalist")
    for fault in found:
        if len(fault.where) < 2 or fault.where[0] not in PARTS:
            raise ValueError(f"{path}: {fault.what}")
    content = {key: value for key, value in content.items() if value is not None}
    if not any(key in content for key in PARTS) and not (path.name == DESCRIPTION and description_of(path.parent)):
        raise ValueError(f"{path}: expected a datalist with lists under {', '.join(PARTS)}, found none of them.")
    return content, found


def _record(path: Path, entry: Any, labels: bool, faults: list[str]) -> dict[str, str] | None:
    """An entry with absolute paths, its faults added to the list; None if its image is missing."""
    given = {"image": entry} if isinstance(entry, str) else entry
    record = {}
    for name in ("image", "label") if labels else ("image",):
        if (value := given.get(name)) is None:
            continue
        if isinstance(value, list):
            faults.append(
                f"{path}: '{given['image']}' has masks of one class each: `python -m bundle prepare custom --source "
                f"{path.name}` merges them."
            )
            continue
        file = as_stored(os.path.normpath(path.parent / value))
        if os.path.isfile(file):
            record[name] = file
        else:
            faults.append(f"{path} names '{file}', which {'is no file' if os.path.exists(file) else 'does not exist'}.")
    return {**record, "case": str(given.get("case", record["image"]))} if "image" in record else None
