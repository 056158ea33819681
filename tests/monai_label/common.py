"""A MONAI Label server's datastore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

CLASSES = {"2": "Myo", "1": "RV", "3": "LV"}
SYNONYMS = {"1": ["right ventricle of heart"], "2": ["myocardium"], "3": ["left ventricle of heart"]}
CODES = {"3": {"scheme": "SCT", "value": "87878005", "meaning": "Left ventricle"}}
AFFINE = np.diag([-1.5, -1.5, 8.0, 1.0])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def make_datastore(root: Path, final: list[str], others: list[str], ext: str = ".nii.gz") -> list[dict[str, str]]:
    """A datastore with empty files; the records of its final labels."""
    objects = {}
    for name in [*final, *others]:
        tags = ["original", "final"] if name in final else ["original"]
        for tag in tags:
            (root / "labels" / tag).mkdir(parents=True, exist_ok=True)
            (root / "labels" / tag / f"{name}.nii.gz").touch()
        (root / f"{name}{ext}").touch()
        labels = {tag: {"ext": ".nii.gz", "info": {}} for tag in tags}
        objects[name] = {"image": {"ext": ext, "info": {}}, "labels": labels}
    index = {"name": "", "description": "", "images_dir": ".", "labels_dir": "labels", "objects": objects}
    (root / "datastore_v2.json").write_text(json.dumps(index))
    return [{"image": str(root / f"{n}{ext}"), "label": str(root / "labels" / "final" / f"{n}.nii.gz")} for n in final]


def set_info(root: Path, study: str, **info: Any) -> None:
    """Set the index's information on a final label."""
    index = json.loads((root / "datastore_v2.json").read_text())
    index["objects"][study]["labels"]["final"]["info"] = info
    (root / "datastore_v2.json").write_text(json.dumps(index))


def listed(*names: str) -> list[dict[str, Any]]:
    """Segments as viewers list them; the voxels are numbered by position, not by the given numbers."""
    return [{"name": name, "idx": number} for number, name in enumerate(names, 2)]
