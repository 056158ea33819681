"""The licences of weights: those of their training data and of the weights that they were initialised from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.utils.files import write_text

__all__ = [
    "SYNTHETIC",
    "UNSTATED",
    "inherited_licenses",
    "licenses_line",
    "recorded_licenses",
    "terms_text",
    "unique_licenses",
    "write_terms",
]

SYNTHETIC = "none needed: synthetic images, under the code's Apache-2.0"
UNSTATED = "not stated"  # the start of an unknown licence; whom to ask follows
FILE = "LICENSE.txt"
_BEGAN = "; and of the weights that these began with: "


def unique_licenses(data: str, *weights: str) -> list[str]:
    """The licences of weights, each once.

    Args:
        data: licence of the training data.
        *weights: licences of the initial weights.
    """
    licenses = [data]
    for text in weights:
        if not any(text in known for known in licenses):
            licenses.append(text)
    return licenses


def recorded_licenses(record: Mapping[str, Any]) -> list[str]:
    """The licences in a record of weights: of the data, then of the initial weights; none if unknown.

    Older records have them in one line.
    """
    found = record.get("license", [])
    return found.split(_BEGAN) if isinstance(found, str) else list(found)


def inherited_licenses(record: Mapping[str, Any]) -> list[str]:
    """The licences that weights with this record pass on to a training initialised from them, without SYNTHETIC."""
    return [text for text in recorded_licenses(record) if text != SYNTHETIC]


def licenses_line(licenses: Sequence[str]) -> str:
    """The licences of weights in one line, for metadata and cards."""
    return _BEGAN.join(licenses)


def terms_text(source: str, licenses: Sequence[str]) -> str:
    """The terms of ``model.pt``, for a file in the same folder.

    Args:
        source: what it was trained on.
        licenses: see :func:`unique_licenses`.
    """
    if list(licenses) == [SYNTHETIC]:
        return (
            "model.pt was trained on synthetic images that this bundle's code generates, without patient data. It is\n"
            "licensed as the code, under Apache-2.0. It shows that the bundle works; it cannot segment real images.\n"
        )
    data, *weights = licenses
    began = "".join(f"Licence of its initial weights: {text}\n" for text in weights)
    return (
        f"model.pt was trained on: {source}\n"
        f"Licence of these data: {data}\n{began}\n"
        "The Apache-2.0 licence of the code does not extend to the weights: use and pass them on under the terms of\n"
        "the data. See docs/data_license.txt. Research use only: not a medical device.\n"
    )


def write_terms(folder: Path, source: str, licenses: Sequence[str]) -> None:
    """Write :func:`terms_text` beside the ``model.pt`` of a folder."""
    write_text(folder / FILE, terms_text(source, licenses))
