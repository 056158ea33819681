"""Files of tensors, read without executing code and with their checksums verified."""

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

    PyTorch does not verify the checksums in the file, so flipped bits would go unnoticed. Files in PyTorch's format
    from before 2020, which are not ZIP archives, have no checksums.

    Args:
        path: the file.
        device: device of the tensors.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, is damaged, or contains more than tensors and plain types.
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
    except Exception as error:  # a damaged file causes errors of zipfile, zlib, pickle or PyTorch
        raise ValueError(f"{path}: cannot be read as tensors: {one_line(error)}") from None
    raise ValueError(f"{path}: is damaged: the checksum of '{damaged}' in it does not match.")


def load_state(path: str | Path) -> dict[str, Tensor]:
    """A network's state_dict, finite tensors by name.

    Args:
        path: file with only the state_dict, like ``model.pt``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is not such a state_dict, see :func:`load_tensors`, or contains values that are not
            finite.
    """
    state = load_tensors(path)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        content = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        hint = ""
        if isinstance(state, Mapping) and "method" in state:
            hint = ": checkpoint.pt serves to resume training, model.pt in the same folder contains the network"
        elif isinstance(state, Mapping) and "model" in state:
            hint = ": `python -m bundle global_model` converts a federation's global model to model.pt"
        raise ValueError(f"{path}: contains {content[:100]}, expected a network's state_dict only{hint}.")
    if name := not_finite(state):
        raise ValueError(f"{path}: '{name}' has values that are not finite: these weights are unusable.")
    return {str(name): value for name, value in state.items()}


def not_finite(state: Mapping[str, Any]) -> str | None:
    """Name of the first tensor with NaN or infinite values; None if there is none."""
    lost = (name for name, value in state.items() if isinstance(value, Tensor) and not bool(value.isfinite().all()))
    return next(lost, None)


def save_tensors(content: Any, path: str | Path) -> None:
    """Write tensors and plain types atomically, see :func:`scripts.utils.files.replacing`."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        torch.save(content, stream)
