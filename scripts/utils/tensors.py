"""Files of tensors, read without executing anything and only if every byte is what was written."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.utils.errors import one_line
from scripts.utils.files import replacing

__all__ = ["load_state", "load_tensors", "not_finite", "save_tensors"]


def load_tensors(path: str | Path, device: torch.device | str = "cpu") -> Any:
    """The content of a file that :func:`torch.save` wrote: tensors, numbers and texts, never code.

    PyTorch itself does not look at the checksums in the file, so that flipped bits would come as other weights. Only
    files in PyTorch's format from before 2020, which are no ZIP archives, have none.

    Args:
        path: the file.
        device: where the tensors go.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, is damaged, or holds more than tensors and plain types.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"'{path}' does not exist: expected a file of tensors.")
    try:
        damaged = None
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # a damaged file ends in errors of zipfile, zlib, pickle and PyTorch
        raise ValueError(f"{path}: cannot be read as tensors: {one_line(error)}") from None
    raise ValueError(f"{path}: is damaged: '{damaged}' in it has another checksum than when it was written.")


def load_state(path: str | Path) -> dict[str, Tensor]:
    """A network's state_dict, finite tensors by name.

    Args:
        path: file with the state_dict alone, as training writes ``model.pt``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is no such state_dict, see :func:`load_tensors`, or holds values that are not finite.
    """
    state = load_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        content = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        hint = ""
        if isinstance(state, Mapping) and "method" in state:
            hint = ": checkpoint.pt serves to resume training, model.pt beside it holds the network"
        elif isinstance(state, Mapping) and "model" in state:
            hint = ": `python -m bundle global_model` makes model.pt of a federation's global model"
        raise ValueError(f"{path}: holds {content[:100]}, expected a network's state_dict alone{hint}.")
    if name := not_finite(state):
        raise ValueError(f"{path}: '{name}' has values that are not finite: these weights are of no use.")
    return {str(name): value for name, value in state.items()}


def not_finite(state: Mapping[str, Any]) -> str | None:
    """The first of some named tensors that has NaN or infinite values; None where there is none."""
    lost = (name for name, value in state.items() if isinstance(value, Tensor) and not bool(value.isfinite().all()))
    return next(lost, None)


def save_tensors(content: Any, path: str | Path) -> None:
    """Write tensors and plain types, the file whole or not at all, see :func:`scripts.utils.files.replacing`."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)
