"""Reading of external JSON: every file is read here and checked against the schema of its kind.

A MONAI config executes a text that begins with ``$``, resolves one that begins with ``@`` and reads a file for one that
begins with ``%``. Text by others, such as a class name or a licence, must therefore not begin with these.
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


DEEPEST = 50  # nested lists and objects; checking and printing them is recursive


class Fault(NamedTuple):
    """A violation of a schema: its keys and indices from the top, and the expected and found values."""

    where: tuple[str | int, ...]
    what: str


def read_json(path: str | Path, kind: str) -> Any:
    """Read and check an external JSON file.

    Args:
        path: a JSON file, in UTF-8 with or without a byte order mark.
        kind: key of :data:`SCHEMAS`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, is not JSON or violates its schema; the message begins with its path.
    """
    content = parse_json(read_text(path), path, kind)
    check(content, kind, path)
    return content


def parse_json(text: str | bytes, path: str | Path, kind: str) -> Any:
    """Parse strict JSON: without NaN and infinity and without duplicate keys.

    Args:
        text: the content of a file, text or UTF-8.
        path: the file, for messages.
        kind: key of :data:`SCHEMAS`, for messages.

    Raises:
        ValueError: if it is not such JSON.
    """
    expected = SCHEMAS[kind]["description"]
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        content = json.loads(decoded, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        content = None
    except ValueError as error:
        raise ValueError(f"{path}: expected {expected}, found invalid JSON: {error}.") from None
    else:
        if _depth(content) <= DEEPEST:
            return content
    raise ValueError(f"{path}: expected {expected}, found too deeply nested JSON.")


def _depth(content: Any) -> int:
    """How many lists and objects lie in one another."""
    level, depth = [content], 0
    while level := [value for value in level if isinstance(value, list | dict)]:
        depth += 1
        level = [inner for value in level for inner in (value.values() if isinstance(value, dict) else value)]
    return depth


def check(content: Any, kind: str, path: str | Path) -> None:
    """Check a content against the schema of its kind.

    Args:
        content: plain nested data.
        kind: key of :data:`SCHEMAS`.
        path: its file, for the message.

    Raises:
        ValueError: for the first fault, in the order of the content.
    """
    for fault in faults_of(content, kind):
        raise ValueError(f"{path}: {fault.what}")


def faults_of(content: Any, kind: str) -> list[Fault]:
    """All violations of the schema of its kind, in the order of the content."""
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
    """A value for a message, on one line of at most a hundred characters."""
    text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def read_text(path: str | Path) -> bytes:
    """The bytes of a text file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is a folder or cannot be read.
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
        raise ValueError(f"the key {next(shown(n) for n in names if names.count(n) > 1)} is a duplicate")
    return content


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text} is too large a number")
    return value
