"""Every file of a data set looked at once: what is wrong with it, and what is in it."""

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

NOT_NOTED = ("info.cfg", ".raw", ".zraw")  # ACDC's data of patients, the voxels that MetaImage headers name
SHOWN = 5


@dataclass(frozen=True)
class Settings:
    """What a data set's images must be.

    Attributes:
        in_channels: channels of an image.
        num_classes: classes, background included.
        label_values: what the label files store for each class; None: the class itself.
        slice_axis: along which axis volumes are cut, one of :data:`scripts.data.axis.AXES`.
    """

    in_channels: int
    num_classes: int
    label_values: Sequence[float] | None = None
    slice_axis: str = THICKEST


@dataclass
class Finding:
    """What is known of one record after it was read.

    Attributes:
        record: the record.
        faults: one line for each thing that training would stumble over, naming its file.
        notes: one line for each thing that is odd and does no harm.
        sha256: digest of each of its files, by key; of a MetaImage header's, header and voxels.
        shape: ``(rows, columns, slices)``, None where the image cannot be read.
        spacing: of a voxel, in mm, in the same order; None for photographs.
        classes: foreground classes that the label shows.
        few_values: whether the image holds a few whole values only.
    """

    record: Mapping[str, str]
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    shape: tuple[int, ...] | None = None
    spacing: tuple[float, ...] | None = None
    classes: tuple[int, ...] = ()
    few_values: bool = False


def survey(records: Sequence[Mapping[str, str]], settings: Settings) -> list[Finding]:
    """Read every image and label.

    Args:
        records: with ``image``, ``case`` and, where labelled, ``label``.
        settings: what they must be.

    Returns:
        one finding per record, in order.
    """
    return in_threads(lambda record: _look(record, settings), records, "checking")


def load(files: Mapping[str, str], slice_axis: str) -> dict[str, MetaTensor]:
    """Images and labels ``[C, rows, columns, slices]`` as the network sees their axes, on their own grid.

    Args:
        files: paths by key; all are cut as the first is.
        slice_axis: see :class:`Settings`.
    """
    keys = list(files)
    steps = [LoadImageVolumed(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="LPS", labels=None)]
    volumes: dict[str, MetaTensor] = Compose([*steps, ThroughPlaneLastd(keys, slice_axis)])(dict(files))
    return volumes


def to_classes(label: MetaTensor, values: Sequence[float] | None) -> MetaTensor:
    """A label map of classes from one of stored values; None: they are the classes."""
    classes: MetaTensor = LabelValuesd("label", values)({"label": label})["label"]
    return classes


def twins(findings: Mapping[str, Sequence[Finding]]) -> tuple[list[str], list[str]]:
    """Images of the same content under two names.

    Args:
        findings: by part.

    Returns:
        faults: those in two parts, which would be trained on and scored; and notes: those in one part.
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
        findings: of all parts.
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
            f"{path} looks like a label map{of}: it holds few values, all of them whole. Name labels as NAME_gt, "
            "list image and label in a datalist, or name the masks of each class by --label_files."
        )
    return notes


def passed_over(root: Path, records: Sequence[Mapping[str, str]]) -> list[str]:
    """Files of a data set's folder that are no image or label of it: a name may be mistyped, a format another.

    Args:
        root: the folder, searched as :func:`scripts.utils.files.files_below` does.
        records: all records that were found in it.

    Returns:
        a note for the files of each folder, those that are called as labels apart.
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
        f"{folder}: {'labels of no image in the set' if label else 'files passed over'}: {some(names)}."
        for (folder, label), names in folders.items()
    ]


def some(names: Sequence[str]) -> str:
    """The first few names, and how many there are in all."""
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
    """A note where a NIfTI's ``pixdim`` seems never to have been set: the spacing that counts may then be wrong."""
    header = geometry_header(image.meta)
    if header is None or not header["sform_code"] or not np.allclose(header["pixdim"][1:4], 1):
        return []
    sform = voxel_sizes(header.get_sform())
    if np.allclose(sform, 1, rtol=0.01):
        return []
    sizes = " x ".join(f"{size:.3g}" for size in sform)
    return [f"{path}: voxels are 1 mm by its pixdim, which counts as in ITK, and {sizes} by its sform: which is true?"]


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


def _try(finding: Finding, check: Any, *args: Any) -> Any:
    """What a check returns; None, and a fault, where it raises."""
    try:
        return check(*args)
    except ValueError as error:
        finding.faults.append(one_line(error))
        return None
