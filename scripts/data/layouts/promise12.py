"""The PROMISE12 data set: T2-weighted prostate MRI in its official MetaImage layout.

Classes: 0 background, 1 prostate.
"""

from __future__ import annotations

import re
from pathlib import Path

from scripts.data.checks import add_or_raise

__all__ = ["promise12_cases"]

_IMAGE = re.compile(r"(Case\d+)\.mh[ad]$")
_ELSEWHERE = re.compile(r"^\.|(^|[^a-z])test")
DEPTH = 2  # an archive unpacked into a folder of its own name


def promise12_cases(root: Path, faults: list[str] | None = None) -> dict[str, list[dict[str, str]]]:
    """Find the cases with their labels.

    ``CaseNN.mhd`` and ``CaseNN_segmentation.mhd``, or either as ``.mha``, lie in ``root`` or in the archives' folders
    below it (``TrainingData_Part1`` to ``3``, ``training_data``). Hidden folders and those of test data (``TestData``,
    ``test_data``, ``livechallenge_test_data``) are ignored: the challenge's test cases have no labels, and their names
    also occur in the training part.

    Args:
        root: folder of the data set.
        faults: if given, faults are added to this list and the first of several files is used.

    Returns:
        one record per case, sorted by name; with ``"label"`` if there is a ``_segmentation`` file.

    Raises:
        FaultsError: if there are two cases of the same name, or two labels of a case; all such pairs.
    """
    cases: dict[str, list[dict[str, str]]] = {}
    found: list[str] = []
    for depth in range(DEPTH + 1):
        for image in sorted(root.glob("*/" * depth + "Case*")):
            folders = image.relative_to(root).parts[:-1]
            matched = _IMAGE.match(image.name)
            if not matched or image.is_dir() or any(_ELSEWHERE.search(name.lower()) for name in folders):
                continue
            name = matched[1]
            if name in cases:
                other = cases[name][0]["image"]
                found.append(f"'{other}' and '{image}' have the same name: expected one file per case.")
                continue
            record = {"image": str(image), "case": name}
            labels = [image.with_name(f"{name}_segmentation{suffix}") for suffix in (".mhd", ".mha")]
            labels = [label for label in labels if label.is_file()]
            if labels:
                record["label"] = str(labels[0])
            if len(labels) > 1:
                found.append(f"'{labels[0]}' and '{labels[1]}' are both the label of '{image}'.")
            cases[name] = [record]
    add_or_raise(found, faults)
    return dict(sorted(cases.items()))
