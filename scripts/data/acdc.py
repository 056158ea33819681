"""The ACDC cine cardiac MRI data set in its official NIfTI layout.

Classes: 0 background, 1 right ventricle (RV), 2 left ventricular myocardium (Myo), 3 left ventricular cavity (LV).
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["acdc_cases"]

_FRAME = re.compile(r"(patient\d+)_frame\d+\.nii\.gz$")


def acdc_cases(root: Path) -> dict[str, list[dict[str, str]]]:
    """Find the annotated frames of every patient.

    Patient folders lie in ``root`` or in its ``training`` and ``testing`` subfolders. Which cine frames are annotated
    differs between patients, so the frames are found, never assumed; ``_4d`` files and ``Info.cfg`` are ignored.

    Args:
        root: folder of the data set.

    Returns:
        records by patient, frames in ascending order; ``"label"`` where there is a ``_gt`` file.
    """
    cases: dict[str, list[dict[str, str]]] = {}
    for folder in (root, root / "training", root / "testing"):
        for image in sorted(folder.glob("patient*/patient*_frame*.nii.gz")):
            found = _FRAME.match(image.name)
            if not found or found[1] != image.parent.name:
                continue
            record = {"image": str(image), "case": found[1]}
            label = image.with_name(image.name.replace(".nii.gz", "_gt.nii.gz"))
            if label.is_file():
                record["label"] = str(label)
            cases.setdefault(found[1], []).append(record)
    return cases
