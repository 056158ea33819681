"""A phantom cohort: synthetic short-axis cardiac cine MRI, to try the bundle without any patient's data.

Volumes are NIfTI files in ACDC's layout with ACDC's classes: 1 right ventricle (RV), 2 myocardium (Myo), 3 left
ventricular cavity (LV). Anatomy and contrast vary between patients more than noise does, because that is what makes
few labelled patients a poor sample; around the heart lie structures as bright as its blood and as dark as its wall.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np

from scripts.data.phantom_patient import PhantomPatient

__all__ = ["make_phantom_cohort"]

VERSION = 1  # raise when the same parameters give other volumes
MARKER = "phantom.json"


def make_phantom_cohort(
    root: str | Path,
    patients: tuple[int, int, int] = (24, 4, 8),
    seed: int = 0,
    size: tuple[int, int] = (128, 160),
    spacing: tuple[float, float] = (1.3, 1.7),
    slices: tuple[int, int] = (7, 11),
) -> str:
    """Write the cohort, or leave an existing one of the same parameters as it is.

    Each patient has an end-diastolic and an end-systolic volume and its label. The folder appears complete or not at
    all: it is built beside ``root`` and renamed.

    Args:
        root: folder of the cohort; gets ``patientXXX/patientXXX_frameYY.nii.gz`` (int16), ``..._gt.nii.gz`` (uint8)
            and ``splits.json`` with the patient names of ``train``, ``val`` and ``test``.
        patients: number of train, validation and test patients.
        seed: seed of the cohort, not negative; a patient depends on the seed and its own number alone.
        size: least and largest number of pixels along an in-plane axis.
        spacing: least and largest pixel size in mm; through-plane it is 8 to 10 mm.
        slices: least and largest number of slices.

    Returns:
        ``root`` as a string.

    Raises:
        FileExistsError: when ``root`` holds anything else than a phantom cohort.
    """
    root = Path(root)
    parameters = json.loads(json.dumps([VERSION, patients, seed, size, spacing, slices]))
    if _is_complete(root, parameters):
        return str(root)
    if root.exists() and any(root.iterdir()) and not (root / MARKER).is_file():
        raise FileExistsError(f"'{root}' is not empty and holds no phantom cohort: give another folder, or remove it.")

    names = [f"patient{i:03d}" for i in range(1, sum(patients) + 1)]
    train, val, _ = patients
    splits = {"train": names[:train], "val": names[train : train + val], "test": names[train + val :]}
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        building.chmod(0o755)  # mkdtemp makes it private
        (building / "splits.json").write_text(json.dumps(splits, indent=4) + "\n", encoding="utf-8")
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(
                pool.map(
                    lambda i: _write_patient(building, names[i], (seed, i), size, spacing, slices), range(len(names))
                )
            )
        (building / MARKER).write_text(json.dumps(parameters), encoding="utf-8")
        if root.exists() and not _is_complete(root, parameters):
            shutil.rmtree(root)
        try:
            building.rename(root)
        except OSError:  # another process was faster
            if not _is_complete(root, parameters):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return str(root)


def _is_complete(root: Path, parameters: list) -> bool:
    marker = root / MARKER
    if not marker.is_file() or json.loads(marker.read_text(encoding="utf-8")) != parameters:
        return False
    return len(list(root.glob("patient*/*_gt.nii.gz"))) == 2 * sum(parameters[1])


def _write_patient(
    root: Path,
    name: str,
    seed: tuple[int, int],
    size: tuple[int, int],
    spacing: tuple[float, float],
    slices: tuple[int, int],
) -> None:
    rng = np.random.default_rng(seed)
    patient = PhantomPatient(rng, size, spacing, slices)
    (root / name).mkdir()
    diastole = int(rng.choice([1, 1, 1, 1, 2, 4]))
    for frame, systole in ((diastole, False), (diastole + int(rng.integers(6, 13)), True)):
        image, label = patient.volume(systole)
        for array, suffix in ((image, ""), (label, "_gt")):
            nifti = nib.Nifti1Image(array, patient.affine)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, root / name / f"{name}_frame{frame:02d}{suffix}.nii.gz")
