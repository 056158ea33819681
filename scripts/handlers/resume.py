"""Resuming: checkpoints are checked completely before they are loaded, and a run locks its folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from scripts.utils.errors import WriteError, one_line
from scripts.utils.tensors import load_tensors, not_finite
from scripts.utils.validation import check

__all__ = ["claim", "load_parts", "read_checkpoint"]


def claim(folder: str | Path) -> FileLock:
    """Lock a folder for one training until the lock is released or the process ends in any way.

    Args:
        folder: folder of the run, created if missing.

    Returns:
        the acquired lock; the same process can acquire it again.

    Raises:
        FileExistsError: if another process holds the lock.
        WriteError: if nothing can be written there.
    """
    lock = FileLock(Path(folder) / ".lock", timeout=0, is_singleton=True)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FileExistsError(
            f"'{folder}': another training runs in this folder: choose another --output_dir, or wait until it ends."
        ) from None
    except OSError as error:
        raise WriteError(f"'{folder}' cannot be locked for this training: {error.strerror}.") from None
    return lock


def read_checkpoint(path: Path, parts: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Read a checkpoint.

    Args:
        path: the checkpoint.
        parts: the parts of a run by name; the checkpoint must have the state of each.
        device: device of the tensors.

    Returns:
        the state of each part, and under ``state`` the position and protocol of the run; only this is already checked.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read, is damaged, or is not a checkpoint.
    """
    content = load_tensors(path, device)
    expected = {*parts, "state"}
    if not isinstance(content, dict) or set(content) != expected:
        found = sorted(map(str, content))[:6] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected a checkpoint with {sorted(expected)}, found {found}.")
    check(content["state"], "checkpoint", path)
    return content


def load_parts(path: Path, parts: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Load the parts of a run from a checkpoint with the same parts.

    Args:
        path: the checkpoint, for messages.
        parts: parts of the run by name, including ``method``, ``optimizer`` and ``grad_scaler``.
        content: see :func:`read_checkpoint`.

    Raises:
        ValueError: if a state does not fit its part, or the weights are not finite.
    """
    for name, part in parts.items():
        state = content[name]
        if name == "grad_scaler" and state == {}:
            continue  # empty if no scaler was needed
        difference = _difference(part.state_dict(), state, name)
        if isinstance(part, torch.optim.Optimizer):
            difference = difference or _strange_moments(part, state)
        elif not isinstance(part, nn.Module) and not difference:  # a scheduler would accept any attribute
            state = {key: value for key, value in state.items() if key in part.state_dict()}
        try:
            if not difference:
                part.load_state_dict(state)
        except Exception as error:
            difference = one_line(error)
        if difference:
            raise ValueError(f"{path}: does not fit the configured method and network: {difference}.")
    if lost := not_finite(content["method"]):
        raise ValueError(f"{path}: '{lost}' has values that are not finite: resume from another checkpoint.")


def _strange_moments(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> str:
    """The first state of an optimizer whose shape differs from its parameter's, in words; empty if there is none."""
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    if not isinstance(state["state"], dict):
        return f"optimizer state: expected a mapping, found {_kind(state['state'])}"
    for number, values in state["state"].items():
        if not isinstance(number, int) or not 0 <= number < len(shapes) or not isinstance(values, dict):
            return f"optimizer state {number}: expected one of the {len(shapes)} parameters"
        for name, value in values.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != shapes[number]:
                return f"optimizer state {number} {name}: expected shape {list(shapes[number])}, found {_kind(value)}"
    return ""


def _difference(expected: Any, found: Any, where: str) -> str:
    """The first difference between a state and the expected one, in words; empty if they match.

    Additional keys of a mapping are accepted: an optimizer has no state before its first step, and other versions have
    other keys.
    """
    if isinstance(expected, Tensor):
        if isinstance(found, Tensor) and found.shape == expected.shape and found.dtype == expected.dtype:
            return ""
        return f"{where}: expected {_kind(expected)}, found {_kind(found)}"
    if isinstance(expected, Mapping):
        if not isinstance(found, Mapping):
            return f"{where}: expected a mapping, found {_kind(found)}"
        inner = [(key, value, found[key]) for key, value in expected.items() if key in found]
        if missing := [key for key in expected if key not in found]:
            return f"{where}: expected '{missing[0]}', which is missing"
    elif isinstance(expected, list | tuple):
        if not isinstance(found, list | tuple) or len(found) != len(expected):
            return f"{where}: expected {_kind(expected)}, found {_kind(found)}"
        inner = list(zip(range(len(expected)), expected, found, strict=True))
    else:
        numbers = all(isinstance(value, int | float) for value in (expected, found))
        same = numbers or isinstance(found, type(expected)) or expected is None or found is None
        return "" if same else f"{where}: expected {_kind(expected)}, found {_kind(found)}"
    texts = (_difference(value, other, f"{where} {key}") for key, value, other in inner)
    return next(filter(None, texts), "")


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
    return f"{len(value)} values" if isinstance(value, list | tuple) else type(value).__name__
