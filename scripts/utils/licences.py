"""The terms that bind weights: those of the data that they learned from, and of the weights that they began with."""

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
UNSTATED = "not stated"  # how a licence begins that is not known; who to ask follows
FILE = "LICENSE.txt"
_BEGAN = "; and of the weights that these began with: "


def unique_licenses(data: str, *weights: str) -> list[str]:
    """The licences that bind weights, each once.

    Args:
        data: licence of the data that they learned from.
        *weights: licences of the weights that they began with.
    """
    licenses = [data]
    for text in weights:
        if not any(text in known for known in licenses):
            licenses.append(text)
    return licenses


def recorded_licenses(record: Mapping[str, Any]) -> list[str]:
    """The licences in a record of weights: of the data, then of the weights that they began with; none if unknown.

    Older records hold them as one line.
    """
    found = record.get("license", [])
    return found.split(_BEGAN) if isinstance(found, str) else list(found)


def inherited_licenses(record: Mapping[str, Any]) -> list[str]:
    """The licences that weights with this record pass on to a training that starts from them, SYNTHETIC left out."""
    return [text for text in recorded_licenses(record) if text != SYNTHETIC]


def licenses_line(licenses: Sequence[str]) -> str:
    """The licences of weights in one line, for metadata and cards."""
    return _BEGAN.join(licenses)


def terms_text(source: str, licenses: Sequence[str]) -> str:
    """The terms of ``model.pt``, for a file beside it.

    Args:
        source: what it was trained on.
        licenses: see :func:`unique_licenses`.
    """
    if list(licenses) == [SYNTHETIC]:
        return (
            "model.pt was trained on synthetic images that this bundle's code makes, no patient behind them. It is\n"
            "licensed as the code, under Apache-2.0. It shows that the bundle works; it segments no real image.\n"
        )
    data, *weights = licenses
    began = "".join(f"Licence of the weights that it began with: {text}\n" for text in weights)
    return (
        f"model.pt was trained on: {source}\n"
        f"Licence of these data: {data}\n{began}\n"
        "The Apache-2.0 licence of the code does not extend to the weights: use and pass them on under the terms of\n"
        "the data. See docs/data_license.txt. Research use only: not a medical device.\n"
    )


def write_terms(folder: Path, source: str, licenses: Sequence[str]) -> None:
    """Write :func:`terms_text` beside the ``model.pt`` of a folder."""
    write_text(folder / FILE, terms_text(source, licenses))
