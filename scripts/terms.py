"""The terms that bind weights: those of the data that they learned from, and of the weights that they began with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["SYNTHETIC", "inherited_terms", "join_terms", "terms_text", "write_terms"]

SYNTHETIC = "none needed: synthetic images, under the code's Apache-2.0"
FILE = "LICENSE.txt"
_BEGAN = "; and of the weights that these began with: "


def join_terms(data: str, weights: str | None) -> str:
    """What binds weights, as one line; a licence that says both is stated once.

    Args:
        data: licence of the data that they learned from.
        weights: licence of the weights that they began with, if any.

    Examples:
        >>> join_terms("CC BY 4.0", None)
        'CC BY 4.0'
        >>> join_terms("CC BY 4.0", "CC BY-NC 4.0")
        'CC BY 4.0; and of the weights that these began with: CC BY-NC 4.0'
    """
    if not weights or weights in data:
        return data
    return weights if data in weights else f"{data}{_BEGAN}{weights}"


def inherited_terms(record: Mapping[str, Any]) -> str | None:
    """What weights with this record pass on to those that begin with them: synthetic images bind nobody."""
    return str(record.get("license", "")).removeprefix(SYNTHETIC).removeprefix(_BEGAN) or None


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
    data, _, weights = terms.partition(_BEGAN)
    began = f"Licence of the weights that it began with: {weights}\n" if weights else ""
    return (
        f"model.pt was trained on: {source}\n"
        f"Licence of these data: {data}\n{began}\n"
        "The Apache-2.0 licence of the code does not extend to the weights: use and pass them on under the terms of\n"
        "the data. See docs/data_license.txt. Research use only: not a medical device.\n"
    )


def write_terms(folder: Path, source: str, terms: str) -> None:
    """Write :func:`terms_text` beside the ``model.pt`` of a folder."""
    temporary = folder / f".{os.getpid()}.{FILE}"
    temporary.write_text(terms_text(source, terms), encoding="utf-8", newline="\n")
    os.replace(temporary, folder / FILE)
