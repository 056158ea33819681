"""Check a data set and freeze it as a datalist: ``python -m bundle prepare``."""

from __future__ import annotations

import json
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser

from bundle.prepare.merge import merge_listed, merge_masks
from bundle.prepare.montage import draw_montage
from bundle.prepare.survey import Finding, Settings, label_like, passed_over, some, survey, twins
from bundle.workflows import CONFIGS, dataset_overlay
from scripts.data.axis import Decision, check_axis, decide_axis, read_grids
from scripts.data.checks import check_class_values
from scripts.data.layouts.datalist import PARTS, read_class_values, read_slice_axis
from scripts.data.layouts.nnunet import description_of
from scripts.data.records import Split, split_cases
from scripts.handlers.report import aligned
from scripts.utils.files import check_writable, write_text
from scripts.utils.options import check_switches
from scripts.utils.validation import parse_json, read_text

__all__ = ["main"]

MARGIN = 1.1
"""Room around the labels' reach: few images are labelled, and others may lie further out."""

KEYS = {part: key for key, part in reversed(PARTS.items())}  # the first name of each part


def main(
    dataset: str,
    source: str,
    output: str = "datalist.json",
    splits: str | None = None,
    in_channels: int | None = None,
    num_classes: int | None = None,
    label_values: Sequence[float] | None = None,
    slice_axis: str | None = None,
    allow_missing: bool = False,
    fold: int = 0,
    label_files: str | Sequence[str] | None = None,
) -> None:
    """Find the cases of a data set, check every file, and write them as a datalist with their split and checksums.

    All faults are listed; with any fault, nothing is written. The datalist also contains the names of the classes and
    their values in label files. A picture next to it shows some images with their labels' outlines. Train on the result
    with ``--dataset_dir datalist.json``.

    Args:
        dataset: acdc, promise12, isic or custom: an overlay in configs/datasets.
        source: folder of the data set, nnU-Net's among them, or a datalist, whose checksums are compared where it has
            some and whose names of classes are kept. Where its labels are lists, the masks of the classes, they are
            merged as those of ``label_files`` are.
        output: the datalist to write; the picture is NAME_montage.png beside it.
        splits: JSON file of case names by part; default: that of the overlay, else a seeded split.
        in_channels: channels of an image; default: the overlay's.
        num_classes: classes with the background; default: those of a datalist as ``source``, else the overlay's.
        label_values: values of the classes in label files, [0,255] for many masks; default: those of a datalist as
            ``source``, else the overlay's.
        slice_axis: plane of the slices: axial, coronal, sagittal, or thickest, each volume along its thickest voxels;
            default: that of a datalist as ``source``, else decided from all headers.
        allow_missing: whether cases of the split may be missing, as downloads are often incomplete: the datalist then
            contains the others.
        fold: the validation fold, if a datalist or nnU-Net's folder has folds.
        label_files: the masks of each class next to their image, such as {name}_myo.nii.gz,{name}_lv.nii.gz: they are
            merged into label maps in the folder NAME_labels next to the datalist.

    Raises:
        ValueError: if an option, the folder's names, the datalist or the splits file is invalid.
        FileNotFoundError: if the source or the splits file does not exist, or there is no case.
    """
    check_switches(allow_missing=allow_missing)
    target = _target(output, source)
    check_writable(target.parent)
    merged = target.with_name(f"{target.stem}_labels")
    if label_files is not None:
        if splits or dataset != "custom" or not Path(source).is_dir():
            raise ValueError("label_files: expected a folder of images with masks, dataset custom and no splits.")
        source = str(merge_masks(Path(source), label_files, merged))
    elif _is_datalist(source):
        source = str(merge_listed(Path(source), merged))
    source = str(description_of(Path(source)) or source)  # nnU-Net's folder is read by its dataset.json
    settings = _settings(dataset, source, in_channels, num_classes, label_values)
    splits = splits or settings["splits"]
    faults: list[str] = []
    split = split_cases(settings["layout"], source, splits, faults, fold)
    axis, reason = _slice_axis(slice_axis, source, split)
    settings["slice_axis"] = axis
    expected = Settings(settings["in_channels"], settings["num_classes"], settings["label_values"], axis)
    findings = {
        part: survey([record for of_case in cases.values() for record in of_case], expected)
        for part, cases in split.parts.items()
    }
    found, notes = _judge(source, split, findings, allow_missing)
    faults += found
    if not _is_datalist(source):
        notes += _left_out(source, split, by_image=settings["layout"] == "custom" and not splits)
    print("\n".join(_table(findings)))
    print(f"slices: {axis}, {reason}")
    _list("note", notes)
    _list("fault", faults)
    if faults:
        sys.exit(f"\nerror: {_count('fault', faults)} in '{source}'; no datalist was written.")
    written = _write(target, dataset, settings, split.where, findings)
    print(f"\n{', '.join(map(str, written))}: train with --dataset_dir {target}")
    print(_geometry(findings["train"]))


def _geometry(findings: Sequence[Finding]) -> str:
    """The pixel size that lets the recipe's window hold what the labels of these images show."""
    pixels = ConfigParser.load_config_file(CONFIGS / "recipe.json")["image_size"]
    reaches = [finding.reach for finding in findings if finding.reach is not None]
    if not reaches:
        return "With configs/recipe.json: --pixel_spacing aspect, as no label says where foreground lies in mm."
    reach = float(np.quantile(reaches, 0.95, method="higher"))
    spacing = math.ceil(20 * MARGIN * 2 * reach / pixels) / 20
    return (
        f"With configs/recipe.json: --pixel_spacing {spacing:g}. Foreground lies within {reach:.0f} mm of the slice's "
        f"centre in 95 % of the labelled images, and {pixels} pixels reach {pixels * spacing / 2:.0f} mm."
    )


def _is_datalist(source: str) -> bool:
    return source.lower().endswith(".json")


def _target(output: str, source: str) -> Path:
    """The absolute path of the datalist to write.

    Raises:
        ValueError: if it is not a .json file, or is the source.
    """
    target = Path(os.path.abspath(output))
    if target.suffix != ".json":
        raise ValueError(f"output: expected the name of a .json file, found '{output}'.")
    if target == Path(os.path.abspath(source)):
        raise ValueError(f"output: '{output}' is the source itself.")
    return target


def _settings(dataset: str, source: str, in_channels: Any, num_classes: Any, label_values: Any) -> dict[str, Any]:
    """The data set's overlay with a datalist's classes and the command line's values.

    Raises:
        ValueError: for an unknown overlay, or inconsistent classes.
    """
    parser = dataset_overlay(dataset)
    keys = ("layout", "splits", "in_channels", "num_classes", "label_values", "class_names", "class_colors")
    settings = {key: parser.get_parsed_content(key) for key in keys}
    names, values = read_class_values(source) if _is_datalist(source) else ({}, None)
    # not through the parser, which would execute text of the datalist that looks like code
    stored = values if label_values is None else label_values
    if num_classes is None and dataset == "custom" and names:
        num_classes = len(stored) if stored else max(map(int, names)) + 1
    given = {"in_channels": in_channels, "num_classes": num_classes, "label_values": stored}
    settings |= {key: value for key, value in given.items() if value is not None}
    settings["class_names"] = {**settings["class_names"], **names}
    check_class_values(settings["num_classes"], settings["label_values"])
    return settings


def _slice_axis(given: str | None, source: str, split: Split) -> Decision:
    """The axis from the command line or a datalist, else decided from the headers of all images."""
    if given is not None:
        return Decision(check_axis(given), "as requested")
    if _is_datalist(source) and (listed := read_slice_axis(source)):
        return Decision(listed, f"from {source}")
    cases = [of_case for of_part in split.parts.values() for of_case in of_part.values()]
    return decide_axis(read_grids([record["image"] for of_case in cases for record in of_case]))


def _judge(
    source: str, split: Split, findings: Mapping[str, Sequence[Finding]], allow_missing: bool
) -> tuple[list[str], list[str]]:
    """Faults and notes of all files and their relations."""
    everything = [finding for of_part in findings.values() for finding in of_part]
    missing, absent = _missing(split, allow_missing)
    torn, doubled = twins(findings)
    changed = _changed(source, everything) if _is_datalist(source) else []
    bare, unscored = _unlabeled(findings)
    faults = [fault for finding in everything for fault in finding.faults]
    notes = [note for finding in everything for note in finding.notes]
    return [*missing, *faults, *torn, *changed, *bare], [*absent, *notes, *label_like(everything), *doubled, *unscored]


def _missing(split: Split, allowed: bool) -> tuple[list[str], list[str]]:
    """Cases of the split that the folder lacks: a fault unless allowed or the whole part is missing."""
    faults, notes = [], []
    for part, names in split.missing.items():
        if names and not split.parts[part] and part != "train":
            notes.append(f"all {len(names)} '{part}' cases of {split.where} are missing.")
        elif names and allowed:
            notes.append(f"{len(names)} '{part}' cases of {split.where} are missing: {', '.join(names)}.")
        else:
            faults += [f"case '{name}' of part '{part}' in {split.where} is missing." for name in names]
    if faults:
        notes.append("--allow_missing True continues without the missing cases.")
    return faults, notes


def _left_out(source: str, split: Split, by_image: bool) -> list[str]:
    """Notes on cases outside the split, and on cases that names cannot identify."""
    cases = [*split.parts.values(), split.spare]
    records = [record for of_part in cases for of_case in of_part.values() for record in of_case]
    notes = passed_over(Path(source), records)
    if split.spare:
        notes.append(f"{split.where} lacks some cases of the folder: {some(sorted(split.spare))}.")
    if by_image:
        notes.append(
            "the split is by image: if a patient has several, only a datalist with their `case` keeps them in one part."
        )
    return notes


def _unlabeled(findings: Mapping[str, Sequence[Finding]]) -> tuple[list[str], list[str]]:
    """Missing labels: faults for training, notes for selection and evaluation."""
    faults, notes = [], []
    bare = {
        part: [finding.record["image"] for finding in of_part if "label" not in finding.record]
        for part, of_part in findings.items()
    }
    if len(bare.get("train", [])) == len(findings.get("train", [])):
        faults.append("no training image has a label.")
    faults += [f"{image}: an image of part 'val' needs a label." for image in bare.get("val", [])]
    if not findings.get("val"):
        notes.append("no validation image: the last weights are used, none are selected.")
    notes += [
        f"{len(images)} of the {len(findings[part])} images of part '{part}' have no label and cannot be evaluated."
        for part, images in bare.items()
        if images and part not in ("train", "val")
    ]
    return faults, notes


def _list(title: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"\n{_count(title, lines)}:\n" + "\n".join(f"  {line}" for line in lines))


def _count(title: str, lines: Sequence[str]) -> str:
    return f"{len(lines)} {title}{'s' if len(lines) > 1 else ''}"


def _changed(source: str, findings: Sequence[Finding]) -> list[str]:
    """Files that no longer match the datalist's checksums."""
    folder = Path(os.path.abspath(source)).parent
    content = parse_json(read_text(source), source, "datalist")  # its faults are already listed
    entries = [entry for key in PARTS for entry in content.get(key) or [] if isinstance(entry, dict)]
    known = {
        os.path.normpath(folder / entry["image"]): entry["sha256"]
        for entry in entries
        if isinstance(entry.get("image"), str) and isinstance(entry.get("sha256"), dict)
    }
    return [
        f"{finding.record[key]}: changed since the datalist was made: SHA-256 {digest[:12]}..., expected {old[:12]}..."
        for finding in findings
        for key, digest in finding.sha256.items()
        if (old := known.get(finding.record["image"], {}).get(key, digest)) != digest
    ]


def _table(findings: Mapping[str, Sequence[Finding]]) -> list[str]:
    """Table of the data by part."""
    lines = [["part", "cases", "images", "labelled", "slices", "images with class", "rows x columns", "spacing in mm"]]
    for part, of_part in findings.items():
        seen = [finding for finding in of_part if finding.shape is not None]
        measured = [finding.spacing for finding in of_part if finding.spacing is not None]
        classes = Counter(c for finding in of_part for c in finding.classes)
        lines.append(
            [
                part,
                str(len({finding.record["case"] for finding in of_part})),
                str(len(of_part)),
                str(sum("label" in finding.record for finding in of_part)),
                str(sum(finding.shape[2] for finding in seen if finding.shape)),
                " ".join(f"{number}:{count}" for number, count in sorted(classes.items())),
                " x ".join(_range([f.shape[axis] for f in seen if f.shape]) for axis in (1, 0)) if seen else "",
                " x ".join(_range([round(spacing[axis], 2) for spacing in measured]) for axis in (1, 0, 2))
                if measured
                else "",
            ]
        )
    return aligned(lines)


def _range(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:g}" if low == high else f"{low:g}-{high:g}"


def _write(
    target: Path, dataset: str, settings: Mapping[str, Any], where: str, findings: Mapping[str, Sequence[Finding]]
) -> list[Path]:
    """Write the datalist and, if there are labels, its picture; returns their paths."""
    write_text(target, json.dumps(_datalist(findings, target.parent, dataset, settings, where), indent=1) + "\n")
    labeled = [finding.record for of_part in findings.values() for finding in of_part if finding.classes]
    if not labeled:
        return [target]
    picture = target.with_name(f"{target.stem}_montage.png")
    draw_montage(
        labeled,
        picture,
        settings["num_classes"],
        settings["class_colors"],
        settings["label_values"],
        settings["slice_axis"],
    )
    return [target, picture]


def _datalist(
    findings: Mapping[str, Sequence[Finding]], folder: Path, dataset: str, settings: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """The datalist's content, paths relative to its folder."""
    names = {"0": "background", **settings["class_names"]}
    lists = {
        KEYS.get(part, part): [
            {
                **{key: _relative(finding.record[key], folder) for key in finding.sha256},
                "case": finding.record["case"],
                "sha256": finding.sha256,
            }
            for finding in of_part
        ]
        for part, of_part in findings.items()
    }
    return {
        "name": dataset,
        "description": f"split: {Path(where).name}",
        "labels": {str(c): names.get(str(c), str(c)) for c in range(settings["num_classes"])},
        "label_values": settings["label_values"],
        "slice_axis": settings["slice_axis"],
        "counts": {
            key: {"images": len(entries), "cases": len({e["case"] for e in entries})} for key, entries in lists.items()
        },
        **lists,
    }


def _relative(path: str, folder: str | Path) -> str:
    """A path relative to a folder, with forward slashes for every system; unchanged on another drive."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:  # Windows has no relative path between drives
        relative = path
    return relative.replace(os.sep, "/")
