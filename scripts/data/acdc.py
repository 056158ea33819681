"""Records of the ACDC cine cardiac MRI data set in its official NIfTI layout.

Classes: 0 background, 1 right ventricle (RV), 2 left ventricular myocardium (Myo), 3 left ventricular cavity (LV).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

__all__ = ["acdc_records"]

_FRAME = re.compile(r"_frame\d+\.nii\.gz$")
_SOURCE = (
    "ACDC comes from https://www.creatis.insa-lyon.fr/Challenge/acdc/ (folders patientXXX with patientXXX_frameYY"
    ".nii.gz and _gt.nii.gz); without it, `make demo` makes a phantom cohort in the same layout"
)


def acdc_records(
    dataset_dir: str | Path, splits: str | Path, part: str, labeled: int | None = None
) -> list[dict[str, str]]:
    """List the annotated frames of one part of a split.

    Patient folders lie in ``dataset_dir`` or in its ``training`` and ``testing`` subfolders. Which cine frames are
    annotated differs between patients, so the frames are found, never assumed; ``_4d`` files and ``Info.cfg`` are
    ignored.

    Args:
        dataset_dir: folder of the data set.
        splits: JSON file ``{"train": [...], "val": [...], "test": [...]}`` of patient names. The order of ``train``
            decides which patients are the labelled ones.
        part: key in ``splits``. An empty part other than ``train`` gives an empty list.
        labeled: only for ``train``: number of labelled patients, the first of the list; the records of all others
            carry no label, whether they have one on disk or not. None: all patients are labelled.

    Returns:
        records ``{"image": path, "label": path, "case": patient}``, patients in the order of the list, frames in
        ascending order; ``"label"`` is absent where the image counts as unlabelled.

    Raises:
        FileNotFoundError: when ``dataset_dir``, ``splits``, a patient, a frame or a label is missing.
        ValueError: when ``splits`` has no such part, or ``labeled`` is not in 1..number of train patients.
    """
    root, splits = Path(dataset_dir), Path(splits)
    if not root.is_dir():
        raise FileNotFoundError(f"dataset_dir '{root}' does not exist. {_SOURCE}.")
    patients = _patients(splits, part)
    num_labeled = len(patients)
    if part == "train":
        if labeled is not None:
            num_labeled = labeled
        if not 1 <= num_labeled <= len(patients):
            raise ValueError(
                f"labeled={num_labeled}: the number of labelled patients must be in 1..{len(patients)}, the number of "
                f"train patients in {splits}."
            )

    folders = {name: _folder(root, name) for name in patients}
    missing = [name for name, folder in folders.items() if folder is None]
    if missing:
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} of the {len(patients)} '{part}' patients of {splits} have no folder in '{root}': {few}. "
            f"{_SOURCE}."
        )
    records = []
    for rank, (name, folder) in enumerate(folders.items()):
        assert folder is not None
        records += _frames(folder, name, with_labels=rank < num_labeled)
    return records


def _patients(splits: Path, part: str) -> list[str]:
    if not splits.is_file():
        raise FileNotFoundError(f"splits file '{splits}' does not exist.")
    try:
        parts = json.loads(splits.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{splits}: expected JSON with lists of patients, found {error}.") from None
    if part not in parts:
        raise ValueError(f"{splits} has no part '{part}', only {sorted(parts)}.")
    patients = list(parts[part])
    if len(set(patients)) < len(patients):
        raise ValueError(f"{splits} names a patient of part '{part}' twice.")
    return patients


def _folder(root: Path, name: str) -> Path | None:
    return next((f for f in (root / name, root / "training" / name, root / "testing" / name) if f.is_dir()), None)


def _frames(folder: Path, name: str, with_labels: bool) -> list[dict[str, str]]:
    """Records of one patient's frames, which in the official layout are the annotated ones."""
    images = sorted(p for p in folder.glob(f"{name}_frame*.nii.gz") if _FRAME.search(p.name))
    if not images:
        raise FileNotFoundError(f"no frame '{name}_frameYY.nii.gz' in '{folder}'.")
    records = []
    for image in images:
        record = {"image": str(image), "case": name}
        if with_labels:
            label = image.with_name(image.name.replace(".nii.gz", "_gt.nii.gz"))
            if not label.is_file():
                raise FileNotFoundError(f"'{image}' belongs to a labelled patient, but '{label}' does not exist.")
            record["label"] = str(label)
        records.append(record)
    return records
