"""The one door for JSON from outside: every file is read here and held against the schema of its kind.

A MONAI config executes a text that begins with ``$``, looks up one that begins with ``@`` and reads a file for one
that begins with ``%``. What other people wrote, a class's name or a licence, must therefore never be such a text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jsonschema import Draft7Validator, validators

from scripts.utils.schemas import SCHEMAS

__all__ = ["Fault", "check", "faults_of", "parse_json", "read_json", "read_text", "shown"]


def _is_number(checker: Any, value: Any) -> bool:
    return Draft7Validator.TYPE_CHECKER.is_type(value, "number") and math.isfinite(value)


_Validator = validators.extend(
    Draft7Validator, type_checker=Draft7Validator.TYPE_CHECKER.redefine("number", _is_number)
)


DEEPEST = 50  # lists and objects in one another; what is held against a schema and shown is walked recursively


class Fault(NamedTuple):
    """Where a content departs from its schema: keys and indices from the top, and what was expected and found."""

    where: tuple[str | int, ...]
    what: str


def read_json(path: str | Path, kind: str) -> Any:
    """Read a file that somebody else may have written.

    Args:
        path: a JSON file, in UTF-8 with or without a byte order mark.
        kind: of the schemas, see :data:`SCHEMAS`.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it cannot be read, is no JSON or departs from its schema; the message begins with its path.
    """
    content = parse_json(read_text(path), path, kind)
    check(content, kind, path)
    return content


def parse_json(text: str | bytes, path: str | Path, kind: str) -> Any:
    """Parse JSON, without the numbers that no JSON has (NaN, infinity) and without keys that stand twice.

    Args:
        text: the content of a file, text or UTF-8.
        path: the file, for messages.
        kind: what it should be, for messages.

    Raises:
        ValueError: when it is no such JSON.
    """
    expected = SCHEMAS[kind]["description"]
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        content = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        content = None
    except ValueError as error:
        raise ValueError(f"{path}: expected {expected}, found no JSON: {error}.") from None
    else:
        if _depth(content) <= DEEPEST:
            return content
    raise ValueError(f"{path}: expected {expected}, found JSON that is nested too deeply.")


def _depth(content: Any) -> int:
    """How many lists and objects lie in one another."""
    level, depth = [content], 0
    while level := [value for value in level if isinstance(value, list | dict)]:
        depth += 1
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return depth


def check(content: Any, kind: str, path: str | Path) -> None:
    """Hold a content against the schema of its kind.

    Args:
        content: plain nested data.
        kind: of the schemas, see :data:`SCHEMAS`.
        path: the file that it comes from, for the message.

    Raises:
        ValueError: for the first fault, in the order of the content.
    """
    for fault in faults_of(content, kind):
        raise ValueError(f"{path}: {fault.what}")


def faults_of(content: Any, kind: str) -> list[Fault]:
    """All departures of a content from the schema of its kind, in the order of the content."""
    found = sorted(_Validator(SCHEMAS[kind]).iter_errors(content), key=lambda error: tuple(error.absolute_path))
    return list(dict.fromkeys(_fault(error) for error in found))


def _fault(error: Any) -> Fault:
    where = tuple(error.absolute_path)
    at = "".join(f"{_key(key)}: " if isinstance(key, str) else f"entry {key + 1}: " for key in where)
    if error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        return Fault(where, f"{at}lacks {', '.join(missing)}.")
    expected = error.schema.get("description") or error.message
    return Fault(where, f"{at}expected {expected}, found {shown(error.instance)}.")


def _key(key: str) -> str:
    return key if key.isprintable() and len(key) <= 100 else shown(key)


def shown(value: Any) -> str:
    """A value in a message, on one line of at most a hundred characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def read_text(path: str | Path) -> bytes:
    """The bytes of a file of text.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is a folder or cannot be read.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path}: expected a file, found a folder.")
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"'{path}' does not exist.") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}.") from None


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(shown(n) for n in names if names.count(n) > 1)} stands twice")
    return content


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large a number")
    return value
