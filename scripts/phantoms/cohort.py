"""Phantom cohorts: synthetic patients in the official layouts, to try the bundle without patient data.

Anatomy and contrast vary more between patients than the noise does, so that few labelled patients are a poor sample;
the target is surrounded by structures of similar appearance. The kinds have the layouts' names:

- ``acdc``: short-axis cardiac cine MRI, NIfTI; 1 right ventricle (RV), 2 myocardium (Myo), 3 left ventricular cavity.
- ``promise12``: axial T2-weighted prostate MRI, MetaImage; 1 prostate.
- ``isic``: dermoscopic photographs, JPG with PNG masks; 1 lesion.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np

from scripts.phantoms.heart import PhantomPatient
from scripts.phantoms.lesion import write_lesion_patient
from scripts.phantoms.prostate import write_prostate_patient
from scripts.phantoms.scan import Range
from scripts.utils.threads import in_threads

__all__ = ["make_phantom_cohort"]

VERSION = 1  # raise when the same parameters give other volumes
MARKER = "phantom.json"


class _Kind(NamedTuple):
    """One kind of cohort.

    Attributes:
        case: returns a case's name from its number.
        first: number of the first case.
        write: ``write(root, names, seed, **ranges)`` writes the cases of these names.
        labels: pattern of the label files.
        labels_per_case: number of label files per case.
        ranges: smallest and largest value of each parameter.
    """

    case: str
    first: int
    write: Callable[..., None]
    labels: str
    labels_per_case: int
    ranges: dict[str, Range]


def make_phantom_cohort(
    root: str | Path,
    patients: tuple[int, int, int] = (24, 4, 8),
    seed: int = 0,
    size: tuple[int, int] | None = None,
    spacing: tuple[float, float] | None = None,
    slices: tuple[int, int] | None = None,
    kind: str = "acdc",
) -> str:
    """Write the cohort, or keep an existing one with the same parameters.

    The cohort is written to a temporary folder, which is then renamed to ``root``. Cardiac patients have an
    end-diastolic and an end-systolic volume, the others one; all have labels.

    Args:
        root: folder of the cohort, with files in the layout ``kind`` (volumes int16, labels uint8) and ``splits.json``
            with the case names of ``train``, ``val`` and ``test``.
        patients: number of train, validation and test patients.
        seed: seed of the cohort, not negative; a patient depends only on the seed and its own number.
        size: smallest and largest number of pixels along an in-plane axis. None, here and below: the default of the
            kind.
        spacing: smallest and largest pixel size in mm. Slices are 8 to 10 mm apart in hearts, 2.5 to 4 mm in prostates.
        slices: smallest and largest number of slices.
        kind: ``acdc``, ``promise12`` or ``isic``, see above; photographs have no ``spacing`` and no ``slices``.

    Returns:
        ``root`` as a string.

    Raises:
        FileExistsError: if ``root`` contains anything but a phantom cohort.
        ValueError: for an unknown kind, or a range that the kind does not have.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, found '{kind}'.")
    cohort = KINDS[kind]
    given = {"size": size, "spacing": spacing, "slices": slices}
    if strange := [name for name, value in given.items() if value is not None and name not in cohort.ranges]:
        raise ValueError(f"{', '.join(strange)}: a phantom cohort of kind '{kind}' has no such range.")
    ranges = {name: given[name] or default for name, default in cohort.ranges.items()}
    root = Path(root)
    # markers of older cohorts lack the kind, which was always acdc
    named = [] if kind == "acdc" else [kind]
    parameters = json.dumps([*named, VERSION, patients, seed, *ranges.values()])
    labels = cohort.labels_per_case * sum(patients)
    if _is_complete(root, parameters, cohort.labels, labels):
        return str(root)
    if root.exists() and any(root.iterdir()) and not (root / MARKER).is_file():
        raise FileExistsError(f"'{root}' is not empty and not a phantom cohort: choose another folder, or remove it.")

    names = [cohort.case.format(cohort.first + i) for i in range(sum(patients))]
    train, val, _ = patients
    splits = {"train": names[:train], "val": names[train : train + val], "test": names[train + val :]}
    root.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    try:
        building.chmod(0o755)  # mkdtemp makes it private
        (building / "splits.json").write_text(json.dumps(splits, indent=4) + "\n", encoding="utf-8")
        cohort.write(building, names, seed, **ranges)
        (building / MARKER).write_text(parameters, encoding="utf-8")
        if root.exists() and not _is_complete(root, parameters, cohort.labels, labels):
            shutil.rmtree(root)
        try:
            building.rename(root)
        except OSError:  # another process has written it
            if not _is_complete(root, parameters, cohort.labels, labels):
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return str(root)


def _is_complete(root: Path, parameters: str, pattern: str, labels: int) -> bool:
    marker = root / MARKER
    if not marker.is_file() or marker.read_bytes() != parameters.encode():
        return False
    return len(list(root.glob(pattern))) == labels


def _write_each(write: Callable[..., None], root: Path, names: Sequence[str], seed: int, **ranges: Range) -> None:
    """Write every patient by a function of ``(root, name, rng, **ranges)``."""
    in_threads(lambda i: write(root, names[i], np.random.default_rng((seed, i)), **ranges), range(len(names)))


def _write_heart_patient(root: Path, name: str, rng: np.random.Generator, **ranges: Any) -> None:
    patient = PhantomPatient(rng, **ranges)
    (root / name).mkdir()
    diastole = int(rng.choice([1, 1, 1, 1, 2, 4]))
    for frame, systole in ((diastole, False), (diastole + int(rng.integers(6, 13)), True)):
        image, label = patient.volume(systole)
        for array, suffix in ((image, ""), (label, "_gt")):
            nifti = nib.Nifti1Image(array, patient.affine)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, root / name / f"{name}_frame{frame:02d}{suffix}.nii.gz")


KINDS: dict[str, _Kind] = {
    "acdc": _Kind(
        case="patient{:03d}",
        first=1,
        write=partial(_write_each, _write_heart_patient),
        labels="patient*/*_gt.nii.gz",
        labels_per_case=2,
        ranges={"size": (128, 160), "spacing": (1.3, 1.7), "slices": (7, 11)},
    ),
    "promise12": _Kind(
        case="Case{:02d}",
        first=0,
        write=partial(_write_each, write_prostate_patient),
        labels="Case*_segmentation.raw",
        labels_per_case=1,
        ranges={"size": (128, 160), "spacing": (0.9, 1.3), "slices": (14, 22)},
    ),
    "isic": _Kind(
        case="ISIC_{:07d}",
        first=0,
        write=partial(_write_each, write_lesion_patient),
        labels="*_GroundTruth/*_segmentation.png",
        labels_per_case=1,
        ranges={"size": (160, 240)},
    ),
}
"""The kinds of cohorts, by layout."""
