from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.transforms import Lambda, Resized, ScaleIntensityd

from scripts.data.fingerprint import fingerprint


def _captures(threshold: float) -> Any:
    return Lambda(lambda x: x > threshold)


def _configured(threshold: float) -> Any:
    """A lambda that a configuration file gives, with a reference to another entry."""
    parser = ConfigParser({"threshold": threshold, "f": "$lambda x: x > @threshold"})
    return parser.get_parsed_content("f")


class _Scale:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def apply(self, x: float) -> float:
        return self.factor * x


MAKERS = [
    lambda v: Resized("image", (v, 8), mode="bilinear"),
    lambda v: ScaleIntensityd("image", maxv=v),
    lambda v: np.full(3, v),
    lambda v: torch.full((3,), v),
    lambda v: {"b": v, "a": {v, "x"}},
    lambda v: functools.partial(max, v),
    lambda v: _Scale(v).apply,
    lambda v: [lambda x: x > 1, lambda x: x > 2][v - 1],
    _captures,
    _configured,
    lambda v: (torch.float32, torch.float64)[v - 1],
    lambda v: (np.float32, np.float64)[v - 1],
]


@pytest.mark.parametrize("make", MAKERS)
def test_equal_settings_are_equal_and_others_are_not(make: Any) -> None:
    one, same, other = (repr(fingerprint(make(v))) for v in (1, 1, 2))
    assert one == same
    assert one != other
    assert " at 0x" not in one, "no address of an object"
