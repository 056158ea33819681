"""Datalists: the records of a data set in one JSON file, in the decathlon's style."""

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
"""A datalist's keys and the parts of a split that they are."""

_FOLDED = {"training": False, "validation": True}


def read_datalist(
    path: str | Path, faults: list[str] | None = None, only: str | None = None, labels: bool = True, fold: int = 0
) -> dict[str, list[dict[str, str]]]:
    """Read a datalist, or the folder of nnU-Net that a ``dataset.json`` lies in.

    The file is held against its schema first (:mod:`scripts.utils.validation`). Each entry of its lists is
    ``{"image": path, "label": path, "case": name}``, or the image's path alone. ``label`` is absent where there is
    none; masks of one class each, a list, are refused, as ``bundle prepare`` merges them. ``case`` is what a split must
    not tear apart, by default the image itself. Paths are relative to the JSON's folder. Where there is no
    ``validation`` list and entries of ``training`` have a number ``fold``, those of one fold validate, as MONAI has it.
    Other keys, of an entry or of the file, are of no account here.

    Args:
        path: JSON file with at least one of the keys of :data:`PARTS`.
        faults: where given, what is wrong with the entries is added here, and what of them is sound is returned.
        only: a part; the lists of all others are not looked at.
        labels: whether labels are read; else they need not be there.
        fold: the one that validates.

    Returns:
        records with absolute paths by part: ``train``, ``val`` and ``test``, those that the file has.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is no datalist, or has folds and not this one.
        FaultsError: all that is wrong with its entries: a file that does not exist, an image that is named twice, a
            label of two images, a case in two parts.
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
                found.append(f"{path}: '{record['image']}' stands {where}.")
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
    """What a datalist says of its classes.

    Args:
        path: see :func:`read_datalist`.

    Returns:
        ``labels``, the names of the classes by their number, ``{}`` where it has none; and ``label_values``, what
        label files store for each class, None where they store its number. nnU-Net's ``{"bone": 1}`` is turned round.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is no datalist, or names and values are not what its schema says.
    """
    content, _ = _content(Path(os.path.abspath(path)))
    return _by_number(content.get("labels") or {}, path), content.get("label_values")


def read_slice_axis(path: str | Path) -> str | None:
    """The axis along which a datalist says that its volumes are cut, see :mod:`scripts.data.axis`; None: it does not.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is no datalist, or names something else.
    """
    content, _ = _content(Path(os.path.abspath(path)))
    axis: str | None = content.get("slice_axis")
    return axis


def _by_number(labels: dict[str, Any], path: str | Path) -> dict[str, str]:
    """The names of classes by their number as text, from either way to write them.

    Args:
        labels: ``{"1": "bone"}``, or nnU-Net's ``{"bone": 1}``.
        path: the file, for messages.

    Raises:
        ValueError: when it is a mixture of the two, two classes have the same name, or one is nnU-Net's ``ignore``.
    """
    names: dict[str, str] = {}
    for key, value in labels.items():
        number, name = (str(value), key) if isinstance(value, int) else (key, value)
        if not re.fullmatch(r"0|[1-9]\d{0,2}", number):
            raise ValueError(
                f"{path}: labels: expected names by the number of their class, found {number!r}: {name!r}."
            )
        if name == "ignore":
            raise ValueError(f"{path}: labels: 'ignore' is no class here: pixels without a class are not left out.")
        if number in names or name in names.values():
            raise ValueError(f"{path}: labels: class {number} or the name {name!r} stands twice.")
        names[number] = name
    return names


def named_classes(class_names: Mapping[Any, str], dataset_dir: str | Path) -> dict[str, str]:
    """The names of the foreground classes by their number as text.

    Args:
        class_names: as the configuration has them; they come before those of a datalist.
        dataset_dir: folder of a data set, or its datalist.
    """
    path = description_of(Path(dataset_dir)) or Path(dataset_dir)
    listed, _ = read_class_values(path) if path.suffix.lower() == ".json" else ({}, None)
    listed.pop("0", None)
    return {**listed, **{str(number): name for number, name in class_names.items()}}


def _by_fold(lists: dict[str, list[Any]], fold: int, path: Path) -> dict[str, list[Any]]:
    """The lists, with the labelled entries of a fold taken out of ``training`` where nothing else validates."""
    training = lists.get("training", [])
    folds = {entry["fold"] for entry in training if isinstance(entry, dict) and "fold" in entry}
    if "validation" in lists or not folds:
        return lists
    if fold not in folds:
        raise ValueError(f"{path}: has the folds {', '.join(map(str, sorted(folds)))}, found no fold {fold}.")
    chosen = [isinstance(entry, dict) and entry.get("fold") == fold and "label" in entry for entry in training]
    parts = {key: [e for e, val in zip(training, chosen, strict=True) if val is own] for key, own in _FOLDED.items()}
    return {**lists, **parts}


def _content(path: Path) -> tuple[dict[str, Any], list[Fault]]:
    """The JSON object of a datalist, which has one list at least, and what is wrong with its entries."""
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
    """An entry with absolute paths, its faults added to the list; None where its image is not there."""
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
