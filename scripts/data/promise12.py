"""The PROMISE12 data set: T2-weighted prostate MRI in its official MetaImage layout.

Classes: 0 background, 1 prostate.
"""

from __future__ import annotations

import re
from pathlib import Path

from scripts.errors import FaultsError

__all__ = ["promise12_cases"]

_IMAGE = re.compile(r"(Case\d+)\.(mhd|mha)$")
_ELSEWHERE = re.compile(r"^\.|(^|[^a-z])test")
DEPTH = 2  # an archive unpacked into a folder of its own name


def promise12_cases(root: Path) -> dict[str, list[dict[str, str]]]:
    """Find the cases with their labels.

    ``CaseNN.mhd`` and ``CaseNN_segmentation.mhd`` lie in ``root`` or in folders below it, as the archives come
    (``TrainingData_Part1`` to ``3``, ``training_data``). Folders of test data (``TestData``, ``test_data``,
    ``livechallenge_test_data``) are left out: the challenge's test cases have no labels, and are called like other
    patients of the training part. So are hidden folders.

    Args:
        root: folder of the data set.

    Returns:
        one record by case, in the order of their names; ``"label"`` where there is a ``_segmentation`` file.

    Raises:
        ValueError: when folders have cases of the same name; all such pairs.
    """
    cases: dict[str, list[dict[str, str]]] = {}
    faults: list[str] = []
    for depth in range(DEPTH + 1):
        for image in sorted(root.glob("*/" * depth + "Case*")):
            folders = image.relative_to(root).parts[:-1]
            found = _IMAGE.match(image.name)
            if not found or any(_ELSEWHERE.search(name.lower()) for name in folders):
                continue
            name = found[1]
            if name in cases:
                other = cases[name][0]["image"]
                faults.append(f"'{other}' and '{image}' have the same name: a case is there once.")
                continue
            record = {"image": str(image), "case": name}
            label = image.with_name(f"{name}_segmentation.{found[2]}")
            if label.is_file():
                record["label"] = str(label)
            cases[name] = [record]
    if faults:
        raise FaultsError(faults)
    return dict(sorted(cases.items()))
