"""Identity of transforms across processes."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from monai.transforms import Compose

__all__ = ["fingerprint"]

# attributes that MONAI's readers and invertible transforms change in use are not settings
_STATE = ("filenames", "_tracing")
# where a lambda in a MONAI configuration finds the object of "@id"
_REFERENCES = "__local_refs"


def fingerprint(value: Any) -> Any:
    """Reduce a value, such as a transform, to its settings as plain nested data.

    Pickles do not serve: they depend on the order of sets, on the identity of strings, and on use.

    Args:
        value: anything; an object is reduced to its class and attributes, a function to its code and captured values.

    Returns:
        nested lists of plain types, whose ``repr`` is the same in every process.
    """
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return np.asarray(value).tolist()
    if isinstance(value, Mapping):
        return sorted(((repr(fingerprint(k)), fingerprint(v)) for k, v in value.items()), key=lambda item: item[0])
    if isinstance(value, (set, frozenset)):
        return sorted(repr(fingerprint(v)) for v in value)
    if isinstance(value, (list, tuple)):
        return [fingerprint(v) for v in value]
    if isinstance(value, Compose):  # a random state, whose text has its address
        return [fingerprint(t) for t in value.flatten().transforms]
    if isinstance(value, functools.partial):
        return fingerprint([value.func, value.args, value.keywords])
    if isinstance(value, types.MethodType):
        return fingerprint([value.__self__, value.__func__])
    if isinstance(value, types.CodeType):
        return fingerprint([value.co_code, value.co_names, value.co_consts])
    if isinstance(value, types.FunctionType):
        references = value.__globals__.get(_REFERENCES, {})
        used = [references[c] for c in value.__code__.co_consts if isinstance(c, str) and c in references]
        captured = [cell.cell_contents for cell in value.__closure__ or ()]
        return fingerprint([value.__qualname__, value.__code__, value.__defaults__, used, captured])
    if hasattr(value, "__qualname__"):  # a class or a built-in function
        return f"{value.__module__}.{value.__qualname__}"
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if not hasattr(value, "__dict__"):
        return [name, str(value)]
    return [name, fingerprint({k: v for k, v in vars(value).items() if k not in _STATE})]
