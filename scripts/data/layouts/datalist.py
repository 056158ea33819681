"""Datalists: the records of a data set in one JSON file, in the decathlon's style."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scripts.data.axis import check_axis
from scripts.data.checks import add_or_raise

__all__ = ["PARTS", "read_class_values", "read_datalist", "read_slice_axis"]

PARTS = {"training": "train", "validation": "val", "test": "test", "testing": "test"}
"""A datalist's keys and the parts of a split that they are."""


def read_datalist(
    path: str | Path, faults: list[str] | None = None, only: str | None = None, labels: bool = True
) -> dict[str, list[dict[str, str]]]:
    """Read a datalist.

    Each entry of its lists is ``{"image": path, "label": path, "case": name}``, or the image's path alone. ``label``
    is absent where there is none; ``case`` is what a split must not tear apart, by default the image itself. Paths
    are relative to the JSON's folder. Other keys, of an entry or of the file, are of no account here.

    Args:
        path: JSON file with at least one of the keys of :data:`PARTS`.
        faults: where given, what is wrong with the entries is added here, and what of them is sound is returned.
        only: a part; the lists of all others are not looked at.
        labels: whether labels are read; else they need not be there.

    Returns:
        records with absolute paths by part: ``train``, ``val`` and ``test``, those that the file has.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is no datalist.
        FaultsError: all that is wrong with its entries: a file that does not exist, an image that is named twice, a
            case in two parts.
    """
    path = Path(os.path.abspath(path))
    content = _content(path)
    parts: dict[str, list[dict[str, str]]] = {}
    part_of_case: dict[str, str] = {}
    seen: dict[str, str] = {}
    found: list[str] = []
    for key, part in PARTS.items():
        if not isinstance(content.get(key), list) or part != (only or part):
            continue
        records = parts.setdefault(part, [])
        for entry in content[key]:
            if (record := _record(path, key, entry, labels, found)) is None:
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
            records.append(record)
    add_or_raise(found, faults)
    return parts


def read_class_values(path: str | Path) -> tuple[dict[str, str], list[float] | None]:
    """What a datalist says of its classes.

    Args:
        path: see :func:`read_datalist`.

    Returns:
        ``labels``, the names of the classes by their number, ``{}`` where it has none; and ``label_values``, what
        label files store for each class, None where they store its number.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is no datalist, or the names are no JSON object.
    """
    content = _content(Path(os.path.abspath(path)))
    names = content.get("labels") or {}
    if not isinstance(names, dict):
        raise ValueError(f'{path}: labels: expected names by class, such as {{"1": "bone"}}, found {names!r}.')
    return {number: str(name) for number, name in names.items()}, content.get("label_values")


def read_slice_axis(path: str | Path) -> str | None:
    """The axis along which a datalist says that its volumes are cut, see :mod:`scripts.data.axis`; None: it does not.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is no datalist, or names no such axis.
    """
    axis = _content(Path(os.path.abspath(path))).get("slice_axis")
    return None if axis is None else check_axis(axis, f"{path}: slice_axis")


def _content(path: Path) -> dict[str, Any]:
    """The JSON object of a datalist, which has one list at least."""
    if not path.is_file():
        raise FileNotFoundError(f"datalist '{path}' does not exist.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a datalist, found no JSON: {error}.") from None
    if not isinstance(content, dict) or not any(isinstance(content.get(key), list) for key in PARTS):
        raise ValueError(f"{path}: expected a datalist with lists under {', '.join(PARTS)}, found none of them.")
    return content


def _record(path: Path, key: str, entry: Any, labels: bool, faults: list[str]) -> dict[str, str] | None:
    """The sound part of an entry with absolute paths, its faults added to the list; None where it has no image."""
    given = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(given, dict) or not isinstance(given.get("image"), str):
        faults.append(f"{path}: expected entries with an image's path in '{key}', found {entry!r}.")
        return None
    record = {}
    for name in ("image", "label") if labels else ("image",):
        value = given.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            faults.append(f"{path}: expected the path of one {name} in '{key}', found {value!r}.")
            continue
        file = os.path.normpath(path.parent / value)
        if os.path.isfile(file):
            record[name] = file
        else:
            faults.append(f"{path} names '{file}', which does not exist.")
    return {**record, "case": str(given.get("case", record["image"]))} if "image" in record else None
