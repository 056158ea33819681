"""A packed bundle's card, from its metadata, the record of its weights and its evaluations' tables."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from scripts.utils.licences import SYNTHETIC
from scripts.utils.validation import read_json, read_text, shown

__all__ = [
    "Evaluation",
    "front_matter",
    "model_card",
    "read_evaluation",
    "results_table",
    "weights_table",
]

TEMPLATE = Path(__file__).with_name("card.md")
WARNING = "**Trained on synthetic images only: it shows that the bundle works and segments no real image.**\n\n"
PARTS = {"val": "validation cases", "test": "test cases", "train": "training cases", "all": "all labelled images"}
MEASURES = {"dsc": "DSC", "hd95_voxels": "HD95, {unit}", "assd_voxels": "ASSD, {unit}"}
# Hugging Face's names of licences, by the start of a licence.
LICENSES = {"CC BY-NC-SA 4.0": "cc-by-nc-sa-4.0", "CC BY-NC 4.0": "cc-by-nc-4.0", SYNTHETIC: "apache-2.0"}
OWN_TERMS = "terms-of-the-data"
MILLIMETRES = {"hd95_mm": "HD95, mm", "assd_mm": "ASSD, mm"}
COLUMNS = ("volumes", "one_empty", *(f"{measure}_mean" for measure in (*MEASURES, *MILLIMETRES)))


class Evaluation(NamedTuple):
    """An evaluation by ``evaluate.json`` on one part of a data set.

    Attributes:
        folder: its folder.
        part: the evaluated part.
        weights_sha256: digest of the evaluated weights.
        code: version of the code.
        rows: ``summary.csv``, one dict of text per class and one of the means.
    """

    folder: str
    part: str
    weights_sha256: str
    code: str
    rows: list[dict[str, str]]

    def has_spacing(self) -> bool:
        """Whether distances in mm are informative: without a voxel size they equal those in voxels or are missing."""
        return any(row["hd95_mm_mean"] not in ("", row["hd95_voxels_mean"]) for row in self.rows)

    def metrics(self) -> dict[str, float]:
        """Mean of each measure by class, for the metadata, named such as ``val_dsc_mean``."""
        measures = [*MEASURES, *(MILLIMETRES if self.has_spacing() else ())]
        return {
            f"{self.part}_{measure}_{row['class']}": float(row[f"{measure}_mean"])
            for measure in measures
            for row in self.rows
        }


def read_evaluation(folder: str | Path) -> Evaluation:
    """Read a folder of ``evaluate.json``.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is not an evaluation's.
    """
    paths = [Path(folder) / name for name in ("evaluation.json", "summary.csv")]
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"'{path}' does not exist: expected an output folder of evaluate.json.")
    about = read_json(paths[0], "evaluation")
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(paths[1]).decode("utf-8")), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{paths[1]}: expected a table of scores, found invalid CSV: {error}.") from None
    for number, row in enumerate(rows or [{}], start=1):
        for column in COLUMNS:
            if not _is_score(value := row.get(column), optional=column.endswith("_mm_mean")):
                raise ValueError(f"{paths[1]}: row {number}: expected a number as {column}, found {shown(value)}.")
    return Evaluation(str(folder), about["part"], about["weights_sha256"], about["code"], rows)


def _is_score(text: str | None, optional: bool) -> bool:
    """Whether a cell is a finite number; distances in mm may be missing."""
    try:
        return (optional and text == "") or math.isfinite(float(text or "nan"))
    except (TypeError, ValueError):
        return False


def results_table(item: Evaluation, unit: str = "voxels") -> str:
    """Markdown table of an evaluation: mean and standard deviation over the volumes, per class and mean."""
    measures = {**MEASURES, **(MILLIMETRES if item.has_spacing() else {})}
    lines = ["| class | " + " | ".join(title.format(unit=unit) for title in measures.values()) + " | one mask empty |"]
    lines.append("|---" * (len(measures) + 2) + "|")
    for row in item.rows:
        cells = []
        for measure in measures:
            digits = 3 if measure == "dsc" else 2
            mean, spread = row[f"{measure}_mean"], row[f"{measure}_std"]
            cells.append(f"{float(mean):.{digits}f} ± {float(spread):.{digits}f}" if mean else "")
        lines.append(f"| {row['class']} | {' | '.join(cells)} | {row['one_empty']} |")
    return "\n".join(lines)


def front_matter(licenses: Sequence[str]) -> str:
    """The front matter of a README for Hugging Face: licence, library and tags.

    Args:
        licenses: licences of the weights, see :func:`scripts.utils.licences.unique_licenses`.
    """
    names = [next((name for start, name in LICENSES.items() if text.startswith(start)), OWN_TERMS) for text in licenses]
    license_id = "-and-".join(dict.fromkeys(names))
    lines = ["library_name: monai", "pipeline_tag: image-segmentation"]
    if license_id in LICENSES.values():
        lines += [f"license: {license_id}"]
    else:
        lines += ["license: other", f"license_name: {license_id}", "license_link: models/LICENSE.txt"]
    return "\n".join(["---", *lines, "tags:", "- monai", "- medical", "- semi-supervised", "---", ""])


def model_card(
    name: str,
    metadata: Mapping[str, Any],
    overlay: Mapping[str, Any],
    record: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    method_overlay: str | None,
) -> str:
    """The bundle's ``docs/README.md``.

    Args:
        name: name of the bundle.
        metadata: its metadata.
        overlay: the data set's config values.
        record: the record of its weights.
        evaluations: evaluations of these weights.
        method_overlay: file in ``configs/methods`` that trains the weights' method.
    """
    classes = {"0": "background", **overlay["class_names"]}
    files = ["train.json", *([f"methods/{method_overlay}"] if method_overlay else [])]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        metadata,
        name=name,
        title=metadata["name"],
        warning=WARNING if record.get("synthetic") else "",
        classes=", ".join(f"{number} {title}" for number, title in classes.items()),
        num_classes=len(classes),
        channels=overlay["in_channels"],
        size=record["image_size"],
        export=_export(record, overlay["in_channels"]),
        weights=weights_table(record),
        performance=_performance(evaluations, record, unit="pixels" if overlay["output_ext"] == ".png" else "voxels"),
        configs="[" + ",".join(f"'configs/{file}'" for file in files) + "]",
        references="\n\n".join(f"[{number}] {text}" for number, text in enumerate(metadata["references"], 1)),
    )


def weights_table(record: Mapping[str, Any]) -> str:
    """Markdown table of the weights' provenance, from their record."""
    method = record["method"] + (f" with {record['fusion']}" if record.get("fusion") else "")
    split, synthetic = record.get("split"), ["synthetic"] if record.get("synthetic") else []
    rows = {
        "Data": ", ".join([record["data"], *([f"split {split}"] if split else []), *synthetic]),
        "Labelled": _count(record, "labeled"),
        "Unlabelled": _count(record, "unlabeled"),
        "Objective": method,
        "Network": record.get("network"),
        "Iteration": f"{record['iteration']:,} of {record.get('iterations', record['iteration']):,}",
        "Slices": f"{record['image_size']} x {record['image_size']} pixels",
        "Precision": record.get("precision"),
        "Batch": f"{record['batch_size']} labelled and {record['batch_size']} unlabelled"
        if "batch_size" in record
        else None,
        "Seed": record["seed"],
        "Began with": f"weights `{record['continues_sha256']}`" if "continues_sha256" in record else None,
        "Code": record["code"],
        "SHA-256": f"`{record['sha256']}`",
    }
    return "\n".join(
        ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items() if value is not None)]
    )


def _export(record: Mapping[str, Any], channels: int) -> str:
    """How to export the network: the U-Net for any size, others, whose parts can only be traced, for one."""
    size, network = record["image_size"], record.get("network", "UNet")
    files = "--ckpt_file models/model.pt --meta_file configs/metadata.json --config_file configs/inference.json"
    script = f"python -m monai.bundle ckpt_export network_def --filepath models/model.ts {files}"
    if network != "UNet":
        title, commands = (
            "TorchScript, for a batch of one and this image size",
            [f'{script} --use_trace True --input_shape "[1,{channels},{size},{size}]"'],
        )
    else:
        title = "TorchScript, and ONNX (with the packages `onnx` and `onnxscript`) for any batch and image size"
        axes = "{0:'batch',2:'height',3:'width'}"
        names = f"'input_names':['image'],'output_names':['pred'],'dynamic_axes':{{'image':{axes},'pred':{axes}}}"
        onnx = f"python -m monai.bundle onnx_export network_def --filepath models/model.onnx {files}"
        commands = [
            script,
            f'{onnx} --input_shape "[2,{channels},{size},{size}]" --converter_kwargs "{{{names}}}"',
        ]
    return "\n".join([f"{title}:", "", "```bash", *commands, "```"])


def _count(record: Mapping[str, Any], kind: str) -> str | None:
    if f"{kind}_cases" not in record:
        return None
    return f"{record[f'{kind}_cases']:,} cases, {record.get(f'{kind}_slices', 0):,} slices"


def _performance(evaluations: Sequence[Evaluation], record: Mapping[str, Any], unit: str) -> str:
    if not evaluations:
        return "These weights have not been evaluated."
    parts = []
    for item in evaluations:
        title = PARTS.get(item.part, f"part '{item.part}'")
        notes = [f"{item.rows[0]['volumes']} {'images' if unit == 'pixels' else 'volumes'}, the {title}"]
        notes.append("each evaluated on its original grid; mean ± standard deviation over them")
        text = f"{', '.join(notes)}. Evaluated by {item.code}."
        if item.part == "val" and "validation_dice" in record:
            text += " **These cases also chose the checkpoint.**"
        if not item.has_spacing():
            text += f" Distances are in {unit}: the images' spacing is unknown."
        parts.append(f"{text}\n\n{results_table(item, unit)}")
    return "\n\n".join(parts)
