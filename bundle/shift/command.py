"""Predicted quality compared with the true Dice, on clean and shifted images: ``python -m bundle shift``."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image
from scipy.stats import pearsonr, spearmanr

from bundle.prepare.survey import load, to_classes
from bundle.shift.transforms import SHIFTS
from bundle.workflows import ROOT, dataset_overlay, execute, keep_settings
from scripts.data.records import dataset_records
from scripts.handlers.report import aligned
from scripts.metrics import dice
from scripts.utils.files import replacing, write_text
from scripts.utils.provenance import file_digest, read_record

__all__ = ["main", "summary"]

BAD, GOOD = 0.6, 0.85
"""True Dice of a volume below which it should be flagged, and above which it should not."""


def main(
    dataset_dir: str,
    checkpoint: str = str(ROOT / "models" / "model.pt"),
    dataset: str = "acdc",
    splits: str | None = None,
    cases: int = 30,
    shifted: int = 10,
    shifts: str | Sequence[str] = tuple(SHIFTS),
    output: str = str(ROOT / "output" / "shift"),
) -> None:
    """Segment validation cases and unlabelled training cases with ``--quality True``; compare with their labels.

    The fit in the weights' record used the validation cases; neither fit nor training used the labels of the unlabelled
    training cases. Images are written and segmented like any others; existing results in the output folder are reused,
    if weights, data and numbers of cases are the same.
    The table ``quality_against_truth.csv`` in ``output`` has a row per image and class.

    Args:
        dataset_dir: folder of the data set, with the labels of its unlabelled cases.
        checkpoint: weights whose record has a calibration (``evaluate.json`` with ``--calibrate True``).
        dataset: overlay in ``configs/datasets``.
        splits: JSON file of case names by part; default: that of the overlay.
        cases: number of training cases, spread over those after the labelled ones of the weights' record.
        shifted: number of shifted cases of each part, one image of each.
        shifts: some of the shifts; ``clean`` is no shift.
        output: folder for images, maps and tables.

    Raises:
        ValueError: for an unknown data set or shift, weights without a record, or an output folder with results of
            other settings.
        FileNotFoundError: if cases or labels are missing.
    """
    names = shifts.split(",") if isinstance(shifts, str) else list(shifts)
    if unknown := [name for name in names if name not in SHIFTS]:
        raise ValueError(f"shifts: expected some of {', '.join(SHIFTS)}, found {', '.join(unknown)}.")
    settings = dataset_overlay(dataset)
    if (record := read_record(checkpoint)) is None:
        raise ValueError(f"'{checkpoint}' has no record, which is needed for the number of labelled training cases.")
    keys = ("layout", "splits", "num_classes", "label_values", "class_names", "output_ext")
    layout, own_splits, num_classes, values, class_names, suffix = map(settings.get_parsed_content, keys)
    splits = splits or own_splits
    parts = {
        "val": _by_case(dataset_records(layout, dataset_dir, "val", splits)),
        "train": _spread(
            _by_case(dataset_records(layout, dataset_dir, "train", splits))[record["labeled_cases"] :], cases
        ),
    }
    kept = {"checkpoint": file_digest(checkpoint), "dataset_dir": os.path.abspath(dataset_dir), "splits": str(splits)}
    keep_settings(Path(output), {**kept, "dataset": dataset, "cases": cases, "shifted": shifted})
    rows: list[dict[str, Any]] = []
    for part, of_cases in parts.items():
        for shift in names:
            chosen = (
                [item for case in of_cases for item in case]
                if shift == "clean"
                else [case[0] for case in _spread(of_cases, shifted)]
            )
            if not chosen:  # no case of this part was asked for
                continue
            folder = Path(output) / part / shift
            for number, item in enumerate(chosen):
                _write_shifted(item, folder / "images", shift, number, values, suffix == ".png")
            maps = folder / "maps"
            if len(list(maps.glob("*_seg.json"))) < len(chosen):
                _segment(dataset, num_classes, folder / "images", maps, checkpoint, quality=True)
            names_of = [class_names.get(str(c), str(c)) for c in range(1, num_classes)]
            rows += [{"part": part, "shift": shift, **row} for row in _compare(folder, names_of)]
    _write_csv(Path(output) / "quality_against_truth.csv", rows)
    print("\n".join(summary(rows)))
    _time(dataset, num_classes, Path(output) / "val" / names[-1] / "images", Path(output), checkpoint)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of agreement between predicted and true Dice, for clean and shifted images of each part.

    Args:
        rows: of :func:`_compare` with ``part`` and ``shift``.

    Returns:
        lines of text. Dice is by class; a volume is flagged if any of its classes is, and bad or good by its mean.
    """
    lines = [["part", "images", "", "Dice", "Pearson", "Spearman", "MAE", "in interval", f"flagged < {BAD}"]]
    lines[0] += [f"flagged > {GOOD}", "worst tenth flagged"]
    shifts = list(dict.fromkeys(row["shift"] for row in rows))
    kinds = {"clean": ["clean"], "shifted": [name for name in shifts if name != "clean"]}
    kinds |= {name: [name] for name in kinds["shifted"]}
    for part in dict.fromkeys(row["part"] for row in rows):
        for kind, members in kinds.items():
            if chosen := [row for row in rows if row["part"] == part and row["shift"] in members]:
                lines.append([part, kind, *_measures(chosen)])
    return aligned(lines)


def _measures(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    known = [row for row in rows if row["predicted_dice"] is not None]
    true, predicted, low, high = (
        np.array([row[key] for row in known], dtype=float) for key in ("dice", "predicted_dice", "low", "high")
    )
    volumes: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        volumes.setdefault((row["shift"], row["case"]), []).append(row)
    means = np.array([np.mean([row["dice"] for row in group]) for group in volumes.values()])
    flagged = np.array([any(row["flags"] for row in group) for group in volumes.values()])
    worst = np.argsort(means, kind="stable")[: max(1, round(len(means) / 10))]
    varied = len(known) > 2 and true.std() > 0 and predicted.std() > 0
    return [
        str(len(volumes)),
        f"{np.mean([row['dice'] for row in rows]):.3f}",
        f"{pearsonr(predicted, true)[0]:.2f}" if varied else "",
        f"{spearmanr(predicted, true)[0]:.2f}" if varied else "",
        f"{np.abs(predicted - true).mean():.3f}" if known else "",
        f"{((low <= true) & (true <= high)).mean():.0%}" if known else "",
        _share(flagged[means < BAD]),
        _share(flagged[means > GOOD]),
        _share(flagged[worst]),
    ]


def _share(flagged: Any) -> str:
    return f"{int(flagged.sum())} of {len(flagged)}" if len(flagged) else "none there"


def _by_case(records: Sequence[Mapping[str, str]]) -> list[list[Mapping[str, str]]]:
    cases: dict[str, list[Mapping[str, str]]] = {}
    for item in records:
        cases.setdefault(item["case"], []).append(item)
    return list(cases.values())


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` items, evenly spread, or all if there are fewer."""
    count = min(count, len(items))
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def _write_shifted(
    item: Mapping[str, str], folder: Path, shift: str, number: int, values: Sequence[float] | None, photograph: bool
) -> None:
    """Write an image and, in another folder, its label as classes."""
    name = f"{number:04}_" + Path(item["image"]).name.removesuffix(".gz").rsplit(".", 1)[0]
    image_file = folder / f"{name}.{'png' if photograph else 'nii'}"
    label_file = folder.with_name("labels") / f"{name}.nii"
    if image_file.is_file() and label_file.is_file():
        return
    volumes = load({key: item[key] for key in ("image", "label")}, "thickest")
    image, label = volumes["image"], to_classes(volumes["label"], values)
    generator = torch.Generator().manual_seed(number)
    pair = SHIFTS[shift](image.as_tensor().float(), label.as_tensor().float(), generator)
    # The affine is unchanged: an export with the wrong axis has a wrong header too.
    affine = np.asarray(image.affine, dtype=np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    label_file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(label_file) as temporary:
        nib.save(nib.Nifti1Image(pair[1][0].numpy().astype(np.uint8), affine), temporary)
    with replacing(image_file) as temporary:
        if photograph:
            pixels = pair[0][..., 0].permute(2, 1, 0).clamp(0, 255).byte().numpy()
            Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0]).save(temporary)
        else:
            nib.save(nib.Nifti1Image(pair[0][0].numpy(), affine), temporary)


def _segment(dataset: str, num_classes: int, images: Path, maps: Path, checkpoint: str, quality: bool) -> float:
    """Segment a folder; returns the seconds of processor time."""
    start = time.process_time()
    given = {"dataset_dir": str(images), "output_dir": str(maps), "checkpoint": checkpoint, "quality": quality}
    files = ["inference.json", f"datasets/{dataset}.json"]
    plain = {"output_ext": ".nii", "label_values": list(range(num_classes))}
    execute("infer", files, bundle_root=str(ROOT), overwrite=True, **plain, **given)
    return time.process_time() - start


def _compare(folder: Path, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """True and predicted Dice for each map in a folder and class."""
    rows = []
    for path in sorted((folder / "maps").glob("*_seg.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        label_file = folder / "labels" / f"{content['case']}.nii"
        pred, label = (
            np.asarray(nib.Nifti1Image.from_filename(file).dataobj)
            for file in (path.with_name(content["map"]), label_file)
        )
        for c, name in enumerate(class_names, start=1):
            true = dice(pred.reshape(label.shape) == c, label == c)
            rows.append({"case": content["case"], "class": name, "dice": true, **content["classes"][name]})
    return rows


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, "dice": round(row["dice"], 4), "flags": ", ".join(row["flags"])} for row in rows)
    write_text(path, text.getvalue())


def _time(dataset: str, num_classes: int, images: Path, output: Path, checkpoint: str) -> None:
    """Print processor time per image with and without quality, from the file to the map."""
    count = len(list(images.iterdir()))
    for quality in (False, True):
        seconds = _segment(dataset, num_classes, images, output / f"timed_{quality}", checkpoint, quality)
        print(f"{seconds / count:.2f} s of processor time per image {'with' if quality else 'without'} quality")
