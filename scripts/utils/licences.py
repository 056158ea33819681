"""The terms that bind weights: those of the data that they learned from, and of the weights that they began with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.utils.files import write_text

__all__ = ["SYNTHETIC", "UNSTATED", "inherited_terms", "join_terms", "split_terms", "terms_text", "write_terms"]

SYNTHETIC = "none needed: synthetic images, under the code's Apache-2.0"
UNSTATED = "not stated"  # how a licence begins that is not known; who to ask follows
FILE = "LICENSE.txt"
_BEGAN = "; and of the weights that these began with: "


def join_terms(data: str, *weights: str) -> str:
    """What binds weights, as one line that states each licence once.

    Args:
        data: licence of the data that they learned from.
        *weights: licences of the weights that they began with.
    """
    parts = [data]
    for text in weights:
        if not any(text in part for part in parts):
            parts.append(text)
    return _BEGAN.join(parts)


def split_terms(terms: str) -> list[str]:
    """The licence of the data and after it those of the weights that came before, as :func:`join_terms` takes them."""
    return terms.split(_BEGAN)


def inherited_terms(record: Mapping[str, Any]) -> list[str]:
    """What weights with this record pass on to those that begin with them: synthetic images bind nobody."""
    return [text for text in split_terms(record["license"]) if text != SYNTHETIC] if "license" in record else []


def terms_text(source: str, terms: str) -> str:
    """The terms of ``model.pt``, for a file beside it.

    Args:
        source: what it was trained on.
        terms: see :func:`join_terms`.
    """
    if terms == SYNTHETIC:
        return (
            "model.pt was trained on synthetic images that this bundle's code makes, no patient behind them. It is\n"
            "licensed as the code, under Apache-2.0. It shows that the bundle works; it segments no real image.\n"
        )
    data, *weights = split_terms(terms)
    began = "".join(f"Licence of the weights that it began with: {text}\n" for text in weights)
    return (
        f"model.pt was trained on: {source}\n"
        f"Licence of these data: {data}\n{began}\n"
        "The Apache-2.0 licence of the code does not extend to the weights: use and pass them on under the terms of\n"
        "the data. See docs/data_license.txt. Research use only: not a medical device.\n"
    )


def write_terms(folder: Path, source: str, terms: str) -> None:
    """Write :func:`terms_text` beside the ``model.pt`` of a folder."""
    write_text(folder / FILE, terms_text(source, terms))
