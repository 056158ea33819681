"""Training data from a folder of DICOM files: ``python -m bundle import``."""

from __future__ import annotations

import csv
import io
import json
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from tqdm import tqdm

from scripts.data.dicom.volume import DicomVolume, dicom_module
from scripts.utils.files import replacing, write_text

__all__ = ["main"]

COLUMNS = ("name", "patient", "study_uid", "series_uid", "file")
DUTY = "Text that is part of the pixels (burned-in annotations) and faces are copied as they are: look for them."


def main(
    source: str,
    output: str,
    phase: str | None = None,
    modality: str | None = None,
    series: str | None = None,
    photographs: bool = False,
    table: str | None = None,
) -> None:
    """Write the volumes of a folder of DICOM files as NIfTI, photographs as PNG, with a datalist that names them.

    Nothing of a patient is written or printed: files are named by salted hashes of the UIDs of study and series. What
    is no image to segment is skipped, what is damaged refused, one line each.

    Args:
        source: folder of DICOM files, searched with those below it, in any order and with any names.
        output: a new folder; gets ``images/`` and ``datalist.json``.
        phase: phases of the heart to take of series that have several: all, a number from 1, ed, es, or several of
            these joined by commas. ed is the first phase; es is an estimate, the phase least like the first.
        modality: MR or CT, where there are both.
        series: take only series whose description or protocol matches this regular expression.
        photographs: take colour photographs, not scans.
        table: CSV file that leads back from names to UIDs and files. It holds the salt too: where it is there already,
            the same studies get the same names again. Only its owner may read it.

    Raises:
        ValueError: for an option that is not what it should be or is needed, as ``phase`` is for series of several.
        FileNotFoundError: where there is no such folder, or nothing in it to segment.
        FileExistsError: where the output is not empty.
    """
    folder, target = Path(source), Path(os.path.abspath(output))
    if not folder.is_dir():
        raise FileNotFoundError(f"source '{source}' is no folder.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"output '{output}' is not empty: choose a new folder.")
    salt = _salt(table)
    found = dicom_module("find").find_volumes(folder, phase, modality, series, photographs, salt)
    if not found.volumes:
        _report([], found.skipped, found.refused)
        raise FileNotFoundError(f"there is nothing to segment in '{source}'.")
    written: list[DicomVolume] = []
    for volume in tqdm(found.volumes, unit="volume", disable=None):
        if fault := _write_image(volume, target / "images"):
            found.refused.append(f"{_stem(volume)}: {fault}")
        else:
            written.append(volume)
    write_text(target / "datalist.json", json.dumps(_datalist(written), indent=4) + "\n")
    if table is not None:
        _write_table(Path(table), salt, found.origins, written)
    _report(written, found.skipped, found.refused)
    print(f"{target / 'datalist.json'}: {len(written)} images. {DUTY}")
    if found.refused:
        sys.exit(1)


def _stem(volume: DicomVolume) -> str:
    return Path(volume).stem


def _image_name(volume: DicomVolume) -> str:
    return f"images/{_stem(volume)}{'.png' if volume.is_photograph else '.nii.gz'}"


def _write_image(volume: DicomVolume, folder: Path) -> str:
    """Write one volume; returns why its files cannot be decoded, "" where they can."""
    try:
        array = dicom_module("pixels").read_voxels(volume.frames)
    except ValueError as error:
        return str(error)
    with replacing(folder / Path(_image_name(volume)).name) as temporary:
        if volume.is_photograph:
            Image.fromarray(np.ascontiguousarray(array[:, :, 0].swapaxes(0, 1))).save(temporary)
        else:
            nifti = nib.Nifti1Image(array, volume.affine)
            nifti.set_qform(volume.affine, code=1)
            nifti.set_sform(volume.affine, code=1)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, temporary)
    return ""


def _datalist(volumes: Sequence[DicomVolume]) -> dict:
    entries = [{"image": _image_name(volume), "case": volume.case} for volume in volumes]
    return {"name": "import", "description": "made from DICOM", "training": entries}


def _report(written: Sequence[DicomVolume], skipped: Sequence[str], refused: Sequence[str]) -> None:
    for title, lines in (("skipped", skipped), ("refused", refused)):
        for line in lines:
            print(f"{title}: {line}")


def _salt(table: str | None) -> bytes:
    """A new salt, or the one of a table that is there.

    Raises:
        ValueError: where the file is no such table.
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
        raise ValueError(f"table '{table}' is no table of an earlier import: choose another file.") from None


def _write_table(path: Path, salt: bytes, origins: dict, written: Sequence[DicomVolume]) -> None:
    """Write what leads back from names to patients, for the owner's eyes alone."""
    cases = {_stem(volume): volume.case for volume in written}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["salt", salt.hex()])
    rows.writerow(COLUMNS)
    for name, header in sorted(origins.items()):
        rows.writerow([name, cases.get(name, ""), header.study, header.series, header.file])
    with replacing(path) as temporary:
        temporary.touch(mode=0o600)
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="\n")
