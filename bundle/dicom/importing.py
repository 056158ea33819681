"""Training data from a folder of DICOM files: ``python -m bundle import``."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from PIL import Image
from tqdm import tqdm

from bundle.workflows import dataset_overlay
from scripts.data.dicom.volume import DicomVolume, dicom_module
from scripts.monai_label.segments import ClassTerms
from scripts.utils.files import replacing, write_text

__all__ = ["main"]

COLUMNS = ("name", "patient", "study_uid", "series_uid", "file")
DUTY = "Burned-in text and faces are copied unchanged: check the images for them."


def main(
    source: str,
    output: str,
    phase: str | None = None,
    modality: str | None = None,
    series: str | None = None,
    photographs: bool = False,
    labels: str | None = None,
    dataset: str = "custom",
    table: str | None = None,
) -> None:
    """Write the volumes of a folder of DICOM files as NIfTI, photographs as PNG, with a datalist.

    No patient data are written or printed: files are named by salted hashes of the UIDs of study and series. Other
    objects than images to segment are skipped and damaged files are refused, with one line each.

    Args:
        source: folder of DICOM files, including subfolders, in any order and with any names.
        output: a new folder for ``images/`` and ``datalist.json``.
        phase: phases of the heart to use from series with several: all, a number from 1, ed, es, or several of these
            separated by commas. ed is the first phase; es is an estimate, the phase least similar to the first.
        modality: MR or CT, required if there are both.
        series: use only series whose description or protocol matches this regular expression.
        photographs: use colour photographs, not scans.
        labels: folder of NIfTI labels, named after images of an earlier import with the same table, or after the UIDs
            of their series. Labels in DICOM SEGs among the files are always used.
        dataset: an overlay in configs/datasets, whose names and codes of classes identify a SEG's segments.
        table: CSV file that maps names to UIDs and files. It also stores the salt: with an existing table, the same
            studies get the same names. Only its owner may read it.

    Raises:
        ValueError: for an invalid or missing option, such as ``phase`` for series with several phases.
        FileNotFoundError: if there is no such folder, or nothing in it to segment.
        FileExistsError: if the output is not empty.
    """
    folder, target = Path(source), Path(os.path.abspath(output))
    if not folder.is_dir():
        raise FileNotFoundError(f"source: expected a folder, found '{source}'.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"output '{output}' is not empty: choose a new folder.")
    salt = _salt(table)
    found = dicom_module("find").find_volumes(folder, phase, modality, series, photographs, salt)
    if not found.volumes:
        _report(found.skipped, found.refused)
        raise FileNotFoundError(f"there is nothing to segment in '{source}'.")
    terms = _terms(dataset)
    segmentations = _by_volume(found, terms)
    counts = Counter(volume.frames[0].series for volume in found.volumes)
    written: dict[DicomVolume, bool] = {}
    for volume in tqdm(found.volumes, unit="volume", disable=None):
        if fault := _write_image(volume, target / "images"):
            found.refused.append(f"{_stem(volume)}: {fault}")
        else:
            alone = counts[volume.frames[0].series] == 1
            file = segmentations.get(volume)
            written[volume] = _write_label(volume, alone, file, labels, terms, target, found.refused)
    names = {"0": "background", **{str(n): name for n, name in terms.names.items()}} if terms.names else {}
    write_text(target / "datalist.json", json.dumps(_datalist(written, names), indent=4) + "\n")
    if table is not None:
        _write_table(Path(table), salt, found.origins, list(written))
    _report(found.skipped, found.refused)
    print(f"{target / 'datalist.json'}: {len(written)} images, {sum(written.values())} with a label. {DUTY}")
    if found.refused:
        sys.exit(1)


def _stem(volume: DicomVolume) -> str:
    return Path(volume).stem


def _image_name(volume: DicomVolume) -> str:
    return f"images/{_stem(volume)}{'.png' if volume.is_photograph else '.nii.gz'}"


def _write_image(volume: DicomVolume, folder: Path) -> str:
    """Write one volume; returns the reason if its files cannot be decoded, else ""."""
    try:
        array = dicom_module("pixels").read_voxels(volume.frames)
    except ValueError as error:
        return str(error)
    with replacing(folder / Path(_image_name(volume)).name) as temporary:
        if volume.is_photograph:
            Image.fromarray(np.ascontiguousarray(array[:, :, 0].swapaxes(0, 1))).save(temporary)
        else:
            _save(array, volume, temporary)
    return ""


def _terms(dataset: str) -> ClassTerms:
    """Names and codes of the classes of a data set.

    Raises:
        ValueError: for an unknown overlay.
    """
    overlay: dict[str, Any] = dataset_overlay(dataset).get()
    return ClassTerms(overlay.get("class_names", {}), overlay.get("class_synonyms"), overlay.get("class_codes"))


def _by_volume(found: Any, terms: ClassTerms) -> dict[DicomVolume, Path]:
    """The DICOM SEG of each volume that has one; others, and unreadable ones, are reported in a line each."""
    labels: dict[DicomVolume, Path] = {}
    for header in found.segmentations:
        volume = dicom_labels().is_labeled_by(header.file, found.volumes)
        if volume is None or not terms.names:
            why = "names no classes: choose another --dataset" if volume is not None else ""
            found.skipped.append(f"a DICOM SEG: {f'the data set {why}' if why else 'its images are missing'}.")
        elif volume in labels:
            found.refused.append(f"{_stem(volume)}: expected one DICOM SEG as its label, found two.")
        else:
            labels[volume] = header.file
    return labels


def dicom_labels() -> Any:
    """:mod:`bundle.dicom.labels`, which needs the packages for DICOM."""
    return dicom_module("bundle.dicom.labels")


def _write_label(
    volume: DicomVolume,
    alone: bool,
    seg: Path | None,
    folder: str | None,
    terms: ClassTerms,
    target: Path,
    refused: list[str],
) -> bool:
    """Write the label of a volume, alone in its series or not, if it has one; a fault becomes a line."""
    module = dicom_labels()
    try:
        label = module.nifti_label(Path(folder), volume, alone) if folder else None
        if label is None and seg is not None:
            label = module.segmentation_label(seg, volume, terms)
    except ValueError as error:
        refused.append(f"{_stem(volume)}: label: {error}")
        return False
    if label is None:
        return False
    with replacing(target / _label_name(volume)) as temporary:
        if volume.is_photograph:
            Image.fromarray(np.ascontiguousarray(label[:, :, 0].T)).save(temporary)
        else:
            _save(label, volume, temporary)
    return True


def _label_name(volume: DicomVolume) -> str:
    return f"labels/{Path(_image_name(volume)).name}"


def _save(array: np.ndarray, volume: DicomVolume, path: Path) -> None:
    """Write NIfTI with a volume's affine."""
    nifti = nib.Nifti1Image(array, volume.affine)
    nifti.set_qform(volume.affine, code=1)
    nifti.set_sform(volume.affine, code=1)
    nifti.header.set_xyzt_units("mm")
    nib.save(nifti, path)


def _datalist(volumes: Mapping[DicomVolume, bool], names: Mapping[str, str]) -> dict[str, Any]:
    """The list, patients with labels throughout first: ``--labeled N`` takes the first N of them."""
    lacking = {volume.case for volume, labeled in volumes.items() if not labeled}
    entries = [
        {"image": _image_name(v), **({"label": _label_name(v)} if volumes[v] else {}), "case": v.case}
        for v in sorted(volumes, key=lambda v: v.case in lacking)
    ]
    labels = {"labels": dict(names)} if names else {}
    return {"name": "import", "description": "made from DICOM", **labels, "training": entries}


def _report(skipped: Sequence[str], refused: Sequence[str]) -> None:
    for title, lines in (("skipped", skipped), ("refused", refused)):
        for line in lines:
            print(f"{title}: {line}")


def _salt(table: str | None) -> bytes:
    """The salt of an existing table, or a new one.

    Raises:
        ValueError: if the file is not such a table.
    """
    if table is None or not os.path.exists(table):
        return secrets.token_bytes(32)
    first = Path(table).read_text(encoding="utf-8").partition("\n")[0]
    try:
        words, digits = first.split(",")
        if words != "salt":
            raise ValueError
        return bytes.fromhex(digits)
    except ValueError:
        raise ValueError(f"table: '{table}' is not the table of an earlier import: choose another file.") from None


def _write_table(path: Path, salt: bytes, origins: dict, written: Sequence[DicomVolume]) -> None:
    """Write the table from names to patients, readable by its owner only; rows of earlier imports are kept."""
    old = path.read_text(encoding="utf-8").splitlines()[2:] if path.exists() else []
    lines = {line[0]: line for line in csv.reader(old)}
    cases = {_stem(volume): volume.case for volume in written}
    for name, header in origins.items():
        patient = cases.get(name) or lines.get(name, [name, ""])[1]
        lines[name] = [name, patient, header.study, header.series, str(header.file)]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["salt", salt.hex()])
    rows.writerow(COLUMNS)
    rows.writerows(line for _, line in sorted(lines.items()))
    with replacing(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")
