"""Survey of all files of a data set: faults and contents, reading each file once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Orientationd
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray

from scripts.data import LabelValuesd, LoadImageVolumed, ThroughPlaneLastd
from scripts.data.axis import THICKEST
from scripts.data.cache import stored_files
from scripts.data.checks import check_classes, check_finite, check_grids, remarks
from scripts.data.layouts.custom import IGNORED, is_label, name_of
from scripts.data.nifti import geometry_header
from scripts.data.readers import is_photograph
from scripts.utils.errors import fault_line, one_line
from scripts.utils.files import files_below
from scripts.utils.provenance import file_digest
from scripts.utils.threads import in_threads

__all__ = ["Finding", "Settings", "label_like", "load", "passed_over", "survey", "to_classes", "twins"]

NOT_NOTED = ("info.cfg", ".raw", ".zraw")  # ACDC's patient data, and the voxels of MetaImage headers
SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """Requirements of a data set's images.

    Attributes:
        in_channels: channels of an image.
        num_classes: classes, background included.
        label_values: value of each class in label files; None: the class itself.
        slice_axis: slice axis of the volumes, one of :data:`scripts.data.axis.AXES`.
    """

    in_channels: int
    num_classes: int
    label_values: Sequence[float] | None = None
    slice_axis: str = THICKEST


@dataclass
class Finding:
    """Result of reading one record.

    Attributes:
        record: the record.
        faults: one line for each fault that would stop a training, naming its file.
        notes: one line for each suspicious but harmless finding.
        sha256: digest of each of its files, by key; for a MetaImage header of header and voxels.
        shape: ``(rows, columns, slices)``, None if the image cannot be read.
        spacing: size of a voxel in mm, in the same order; None for photographs.
        classes: foreground classes in the label.
        reach: how far from the slices' centre foreground lies, in mm along rows or columns; None without either.
        few_values: whether the image has a few whole values only.
    """

    record: Mapping[str, str]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    classes: tuple[int, ...] = ()
    reach: float | None = None
    few_values: bool = False


def survey(records: Sequence[Mapping[str, str]], settings: Settings) -> list[Finding]:
    """Read every image and label.

    Args:
        records: records with ``image``, ``case`` and, if labelled, ``label``.
        settings: requirements of the images.

    Returns:
        one finding per record, in order.
    """
    return in_threads(lambda record: _look(record, settings), records, "checking")


def load(files: Mapping[str, str], slice_axis: str) -> dict[str, MetaTensor]:
    """Images and labels ``[C, rows, columns, slices]`` with the network's order of axes, on their own grid.

    Args:
        files: paths by key; the first decides the slice axis for all.
        slice_axis: see :class:`Settings`.
    """
    keys = list(files)
    steps = [LoadImageVolumed(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="LPS", labels=None)]
    volumes: dict[str, MetaTensor] = Compose([*steps, ThroughPlaneLastd(keys, slice_axis)])(dict(files))
    return volumes


def to_classes(label: MetaTensor, values: Sequence[float] | None) -> MetaTensor:
    """A label map of classes from one of stored values; with None the values are the classes."""
    classes: MetaTensor = LabelValuesd("label", values)({"label": label})["label"]
    return classes


def twins(findings: Mapping[str, Sequence[Finding]]) -> tuple[list[str], list[str]]:
    """Duplicate images under different names.

    Args:
        findings: findings by part.

    Returns:
        faults: duplicates in two parts, which would be leakage; and notes: duplicates in one part.
    """
    faults, notes = [], []
    seen: dict[str, tuple[str, Finding]] = {}
    for part, of_part in findings.items():
        for finding in of_part:
            if (digest := finding.sha256.get("image")) is None:
                continue
            other_part, other = seen.setdefault(digest, (part, finding))
            same = f"{finding.record['image']}: the same image as {other.record['image']}"
            if other_part != part:
                faults.append(f"{same}, in '{part}' and in '{other_part}'.")
            elif other is not finding:
                where = "two cases" if other.record["case"] != finding.record["case"] else "one case"
                notes.append(f"{same}, in {where} of '{part}'.")
    return faults, notes


def label_like(findings: Sequence[Finding]) -> list[str]:
    """A note for each image without a label that looks like the label map of another one.

    Args:
        findings: findings of all parts.
    """
    images: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in findings:
        if not finding.few_values:
            images.setdefault((finding.shape, finding.spacing), []).append(finding)
    notes = []
    for finding in findings:
        if not finding.few_values or "label" in finding.record:
            continue
        path = Path(finding.record["image"])
        same = [Path(other.record["image"]) for other in images.get((finding.shape, finding.spacing), [])]
        near = [other for other in same if other.parent in (path.parent, path.parent.parent)]
        named = [other for other in near if path.name.startswith(str(name_of(Path(other.name))))]
        best = max(named or near, key=lambda other: len(other.name), default=None)
        of = f" of {best}" if best else ""
        notes.append(
            f"{path} looks like a label map{of}: it has few values, all of them whole. Name labels NAME_gt, "
            "list image and label in a datalist, or name the masks of each class by --label_files."
        )
    return notes


def passed_over(root: Path, records: Sequence[Mapping[str, str]]) -> list[str]:
    """Files of a data set's folder that are not used: a name may be misspelled, or a format unsupported.

    Args:
        root: the folder, see :func:`scripts.utils.files.files_below`.
        records: all records of the folder.

    Returns:
        a note for the unused files of each folder, and one for those with names of labels.
    """
    used = {Path(record[key]) for record in records for key in ("image", "label") if key in record}
    folders: dict[tuple[Path, bool], list[str]] = {}
    for path in files_below(root):
        if path in used:
            continue
        name = (name_of(path.relative_to(root)) or "").lower()
        if not name.endswith(IGNORED) and not path.name.lower().endswith(NOT_NOTED):
            folders.setdefault((path.parent, bool(name) and is_label(name)), []).append(path.name)
    return [
        f"{folder}: {'labels without an image' if label else 'unused files'}: {some(names)}."
        for (folder, label), names in folders.items()
    ]


def some(names: Sequence[str]) -> str:
    """The first few names, and the total number."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")


def _look(record: Mapping[str, str], settings: Settings) -> Finding:
    finding = Finding(record)
    volumes: dict[str, MetaTensor] = {}
    for key in ("image", "label"):
        if key not in record:
            continue
        path = record[key]
        try:
            finding.sha256[key] = file_digest(*stored_files(Path(path)))
            volumes |= load({key: path}, settings.slice_axis)
        except Exception as error:
            finding.faults.append(fault_line(error, path))
    if "image" in volumes:
        _look_at_image(finding, volumes["image"], settings)
    if len(volumes) == 2 and volumes["label"].shape[0] == 1:
        _try(finding, check_grids, volumes["image"], volumes["label"], record)
    if "label" in volumes:
        _look_at_label(finding, volumes["label"], settings)
    return finding


def _look_at_image(finding: Finding, image: MetaTensor, settings: Settings) -> None:
    path = finding.record["image"]
    finding.shape = tuple(image.shape[1:])
    if not is_photograph(path):
        finding.spacing = tuple(float(size) for size in image.pixdim)
    if image.shape[0] != settings.in_channels:
        finding.faults.append(f"{path}: found {image.shape[0]} channels, expected {settings.in_channels}.")
    _try(finding, check_finite, image, path)
    finding.few_values = bool(image.meta["few_values"])
    finding.notes += _left_at_one(path, image)
    finding.notes += [f"{path} {what}" for what in remarks(image.numpy(), few_values=False)]
    if bool((image == image.flatten()[0]).all()):
        finding.faults.append(f"{path}: the image is empty, all its values are {float(image.flatten()[0]):g}.")


def _left_at_one(path: str, image: MetaTensor) -> list[str]:
    """A note if a NIfTI's ``pixdim`` seems unset, so that the spacing may be wrong."""
    header = geometry_header(image.meta)
    if header is None or not header["sform_code"] or not np.allclose(header["pixdim"][1:4], 1):
        return []
    sform = voxel_sizes(header.get_sform())
    if np.allclose(sform, 1, rtol=0.01):
        return []
    sizes = " x ".join(f"{size:.3g}" for size in sform)
    return [f"{path}: voxels are 1 mm by its pixdim, which is used as in ITK, and {sizes} by its sform: check both."]


def _look_at_label(finding: Finding, label: MetaTensor, settings: Settings) -> None:
    path = finding.record["label"]
    if label.shape[0] != 1:
        finding.faults.append(f"{path}: found {label.shape[0]} channels, expected a label of one.")
        return
    classes = _try(finding, to_classes, label, settings.label_values)
    if classes is None:
        return
    values: NDArray[np.floating] = np.unique(classes.numpy())
    _try(finding, check_classes, values, path, settings.num_classes)
    finding.classes = tuple(int(v) for v in values if v in range(1, settings.num_classes))
    if not values.any():
        finding.notes.append(f"{path}: no foreground.")
    elif finding.spacing is not None:
        finding.reach = _reach(classes.numpy()[0], finding.spacing)


def _reach(classes: NDArray[np.generic], spacing: Sequence[float]) -> float:
    """Largest distance in mm, along rows or columns, of a foreground voxel's far side from the slices' centre."""
    rows_columns = np.nonzero(classes.any(axis=2))
    return max(
        float(np.abs(index + 0.5 - size / 2).max() + 0.5) * mm
        for index, size, mm in zip(rows_columns, classes.shape, spacing, strict=False)
    )


def _try(finding: Finding, check: Any, *args: Any) -> Any:
    """The result of a check; None and a fault if it raises."""
    try:
        return check(*args)
    except ValueError as error:
        finding.faults.append(one_line(error))
        return None
