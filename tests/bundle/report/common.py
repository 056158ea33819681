"""Cases made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bundle.report.cases import Case


def make_case(labeled: Sequence[int], predicted: Sequence[int], **values: Any) -> Case:
    """A case with the given numbers of voxels of each class, background first."""
    blank = np.zeros((2, 8, 8), dtype=np.uint8)
    known: dict[str, Any] = {
        "name": "a",
        "patient": "a",
        "file": "a.nii.gz",
        "image": blank[..., None],
        "label": blank,
        "prediction": blank,
        "size": (8, 8, 2),
        "spacing": (2.0, 2.0, 10.0),
        "intensity": (0.2, 0.1),
    }
    return Case(labeled=np.array(labeled), predicted=np.array(predicted), **{**known, **values})
