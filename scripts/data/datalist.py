"""Datalists: the records of a data set in one JSON file, in the decathlon's style."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from scripts.data.checks import add_or_raise

__all__ = ["PARTS", "read_datalist"]

PARTS = {"training": "train", "validation": "val", "test": "test", "testing": "test"}
"""A datalist's keys and the parts of a split that they are."""


def read_datalist(path: str | Path, faults: list[str] | None = None) -> dict[str, list[dict[str, str]]]:
    """Read a datalist.

    Each entry of its lists is ``{"image": path, "label": path, "case": name}``, or the image's path alone. ``label``
    is absent where there is none; ``case`` is what a split must not tear apart, by default the image itself. Paths
    are relative to the JSON's folder. Other keys, of an entry or of the file, are of no account.

    Args:
        path: JSON file with at least one of the keys of :data:`PARTS`.
        faults: where given, what is wrong with the entries is added here, and what of them is sound is returned.

    Returns:
        records with absolute paths by part: ``train``, ``val`` and ``test``, those that the file has.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when it is no datalist.
        FaultsError: all that is wrong with its entries: a file that does not exist, an image that is named twice, a
            case in two parts.
    """
    path = Path(os.path.abspath(path))
    if not path.is_file():
        raise FileNotFoundError(f"datalist '{path}' does not exist.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected a datalist, found no JSON: {error}.") from None
    keys = [key for key in PARTS if isinstance(content, dict) and isinstance(content.get(key), list)]
    if not keys:
        raise ValueError(f"{path}: expected a datalist with lists under {', '.join(PARTS)}, found none of them.")
    parts: dict[str, list[dict[str, str]]] = {}
    part_of_case: dict[str, str] = {}
    seen: dict[str, str] = {}
    found: list[str] = []
    for key in keys:
        records = parts.setdefault(PARTS[key], [])
        for entry in content[key]:
            if (record := _record(path, key, entry, found)) is None:
                continue
            other = seen.get(record["image"])
            seen[record["image"]] = key
            part = part_of_case.setdefault(record["case"], PARTS[key])
            if other:
                where = f"in {key} twice" if other == key else f"in {other} and in {key}"
                found.append(f"{path}: '{record['image']}' stands {where}.")
                continue
            if part != PARTS[key]:
                found.append(
                    f"{path}: case '{record['case']}' has images in '{part}' and in '{PARTS[key]}'; a case belongs to "
                    "one part."
                )
            records.append(record)
    add_or_raise(found, faults)
    return parts


def _record(path: Path, key: str, entry: Any, faults: list[str]) -> dict[str, str] | None:
    """The sound part of an entry with absolute paths, its faults added to the list; None where it has no image."""
    given = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(given, dict) or not isinstance(given.get("image"), str):
        faults.append(f"{path}: expected entries with an image's path in '{key}', found {entry!r}.")
        return None
    record = {}
    for name in ("image", "label"):
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
