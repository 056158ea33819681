"""The ACDC cine cardiac MRI data set in its official NIfTI layout.

Classes: 0 background, 1 right ventricle (RV), 2 left ventricular myocardium (Myo), 3 left ventricular cavity (LV).
"""

from __future__ import annotations

import re
from pathlib import Path

from scripts.data.checks import add_or_raise

__all__ = ["acdc_cases"]

_FRAME = re.compile(r"(patient\d+)_frame\d+\.nii\.gz$")
_FOLDERS = ("", "training", "testing", "database/training", "database/testing")


def acdc_cases(root: Path, faults: list[str] | None = None) -> dict[str, list[dict[str, str]]]:
    """Find the annotated frames of every patient.

    Patient folders lie in ``root``, in its ``training`` and ``testing`` or in those of its ``database``. The annotated
    cine frames differ between patients, so they are found by their files; ``_4d`` files and ``Info.cfg`` are ignored.

    Args:
        root: folder of the data set.
        faults: if given, faults are added to this list and the first folder of a patient is used.

    Returns:
        records by patient, frames in ascending order; with ``"label"`` if there is a ``_gt`` file.

    Raises:
        FaultsError: if a patient has several folders; all such pairs.
    """
    cases: dict[str, list[dict[str, str]]] = {}
    folders: dict[str, Path] = {}
    found: list[str] = []
    for patient in (path for folder in _FOLDERS for path in sorted((root / folder).glob("patient*"))):
        frames = [
            image
            for image in sorted(patient.glob("patient*_frame*.nii.gz"))
            if (name := _FRAME.match(image.name)) and name[1] == patient.name and not image.is_dir()
        ]
        if frames and (other := folders.setdefault(patient.name, patient)) != patient:
            found.append(f"'{other}' and '{patient}' have the same name: expected one folder per patient.")
            continue
        for image in frames:
            record = {"image": str(image), "case": patient.name}
            label = image.with_name(image.name.replace(".nii.gz", "_gt.nii.gz"))
            if label.is_file():
                record["label"] = str(label)
            cases.setdefault(patient.name, []).append(record)
    add_or_raise(found, faults)
    return cases
