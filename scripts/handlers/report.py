"""Evaluation report: scores of every volume and their summary, as CSV files and as a printed table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.utils import string_list_all_gather
from numpy.typing import NDArray

from scripts.data.readers import is_photograph
from scripts.metrics import COUNTS, MEASURES, SegmentationMetric
from scripts.utils.files import write_csv, write_text
from scripts.utils.provenance import code_version, file_digest, read_record

__all__ = ["SegmentationReport", "aligned", "case_names"]

CHOSEN = (
    "These weights were chosen by their Dice on validation cases: their scores on the same cases are biased upwards."
)


class SegmentationReport:
    """Handler that scores every volume of an evaluation run and writes the report when the run completes.

    The engine's output must be a list of volumes after postprocessing: ``pred`` and ``label``, label maps ``[1, ...]``
    on the image's own grid, and ``image``, whose metadata names the file. Written to ``output_dir``:

    - ``per_volume.csv``: one row per volume and class, and per volume the mean over the foreground classes.
    - ``summary.csv``: mean and standard deviation (of the population) over the volumes, per class and of the means.
    - ``evaluation.json``, with ``checkpoint``: the evaluated part and the digest of the weights.

    A line under the table warns if the part is the one whose Dice selected the weights, according to their record.

    Distances are in voxels and, for volumes, in mm by the image's spacing; the mm are true only if that spacing is.
    Photographs (2-D) have no distances in mm. ``one_empty`` counts classes that only the prediction or only the label
    contains, ``both_empty`` those that neither contains.

    The scores are collected by :class:`scripts.metrics.SegmentationMetric`. The two handlers that MONAI has for such a
    metric do not fit: ``IgniteMetricHandler`` passes it prediction and label alone, so an error could not name the
    file; ``MetricsSaver`` writes one file per metric with four decimals, averages every column over the classes (DSC
    and mm alike), and writes directly to the final name.

    Under several processes the first one writes the scores of all, each file once.

    Args:
        output_dir: folder of the report, created if missing.
        num_classes: number of classes, background included.
        class_names: name of each foreground class by its number as text; others are called by their number.
            None or empty: the names in the record of the weights.
        checkpoint: file of the weights that are evaluated.
        part: the part of the data set that is evaluated.
        pred_key: key of the predicted label map.
        label_key: key of the true label map.
    """

    def __init__(
        self,
        output_dir: str | Path,
        num_classes: int,
        class_names: Mapping[str, str] | None = None,
        checkpoint: str | Path | None = None,
        part: str | None = None,
        pred_key: str = "pred",
        label_key: str = "label",
    ) -> None:
        self.output_dir = Path(output_dir)
        self.metric = SegmentationMetric(num_classes)
        self.class_names = {str(number): name for number, name in (class_names or {}).items()}
        self.checkpoint = checkpoint
        self.part = part
        self.keys = (pred_key, label_key)
        self.chosen = False
        self.files: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Register with the evaluator.

        Args:
            engine: MONAI evaluator that decollates and postprocesses.
        """
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _start(self) -> None:
        self.files.clear()
        self.metric.reset()
        if self.checkpoint is not None:
            # Read at the start: a training may replace the file before the last volume is scored.
            digest = file_digest(self.checkpoint)
            self.about = {"part": self.part, "weights_sha256": digest, "code": code_version()}
            record = read_record(self.checkpoint) or {}
            self.chosen = self.part == "val" and "validation_dice" in record
            self.class_names = self.class_names or record.get("class_names", {})

    def _score(self, engine: Engine) -> None:
        """Score the volumes of one iteration.

        Raises:
            ValueError: if prediction and label do not lie on the same grid or the label has values beyond the classes.
        """
        output: Any = engine.state.output
        for item in output:
            file = str(item["image"].meta["filename_or_obj"])
            pred, label = (item[key] for key in self.keys)
            try:
                _check_axes(pred, label)
                self.metric([_without_affine(pred) if is_photograph(file) else pred], [label])
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            self.files.append(file)

    def _write(self) -> None:
        """Write the files and print the summary."""
        buffer = self.metric.get_buffer()
        files = string_list_all_gather(self.files)
        if idist.get_rank() != 0:
            return
        scores = np.empty((0, self.metric.num_classes, len(MEASURES) + len(COUNTS)))
        if buffer is not None:
            scores = buffer.cpu().numpy()
        if idist.get_world_size() > 1:
            kept = sorted(np.unique(files, return_index=True)[1])
            files, scores = [files[i] for i in kept], scores[kept]
        classes = [self.class_names.get(str(i), str(i)) for i in range(1, self.metric.num_classes)] + ["mean"]
        volumes = [
            {"case": case, "class": name, **_row(values)}
            for case, rows in zip(case_names(files), scores, strict=True)
            for name, values in zip(classes, rows, strict=True)
        ]
        summary = [
            {"class": name, "volumes": len(files), **_summary(column)}
            for name, column in zip(classes, scores.swapaxes(0, 1), strict=True)
            if files
        ]
        write_csv(self.output_dir / "per_volume.csv", volumes)
        write_csv(self.output_dir / "summary.csv", summary)
        if self.checkpoint is not None:
            write_text(self.output_dir / "evaluation.json", json.dumps(self.about, indent=4) + "\n")
        note = f"{CHOSEN}\n" if self.chosen else ""
        print(f"{_table(summary)}\n{note}{self.output_dir / 'summary.csv'}, per volume in per_volume.csv")


def _row(values: NDArray[np.float64]) -> dict[str, float | int | None]:
    """One row ``[M]`` of :class:`scripts.metrics.SegmentationMetric` by the names of its columns."""
    scores, counts = values[: len(MEASURES)].tolist(), values[len(MEASURES) :].astype(int).tolist()
    defined = [None if math.isnan(score) else score for score in scores]
    return dict(zip((*MEASURES, *COUNTS), [*defined, *counts], strict=True))


def _summary(column: NDArray[np.float64]) -> dict[str, float | int | None]:
    """Mean and deviation of one class ``[N, M]`` over the volumes, and the sums of its counts."""
    row: dict[str, float | int | None] = {}
    for measure, values in zip(MEASURES, column.T, strict=False):
        defined = values[~np.isnan(values)]
        row[f"{measure}_mean"] = float(np.mean(defined)) if len(defined) else None
        row[f"{measure}_std"] = float(np.std(defined)) if len(defined) else None
    return {**row, **dict(zip(COUNTS, column[:, len(MEASURES) :].sum(0).astype(int).tolist(), strict=True))}


def _check_axes(pred: Any, label: Any) -> None:
    """Raise if the label file stores its axes in other directions than the image file."""
    if isinstance(pred, MetaTensor) and isinstance(label, MetaTensor) and label.ndim == 4:
        found, expected = ("".join(nib.aff2axcodes(np.asarray(item.affine))) for item in (label, pred))
        if found != expected:
            raise ValueError(f"the label's axes are {found}, expected {expected} as the image's.")


def _without_affine(pred: Any) -> Any:
    return pred.as_tensor() if isinstance(pred, MetaTensor) else pred


def case_names(files: Sequence[str]) -> list[str]:
    """Paths relative to the common folder of all files, without suffix, so that equal file names stay distinct."""
    root = os.path.commonpath([os.path.dirname(file) for file in files]) if files else ""
    return [Path(os.path.relpath(file, root or ".")).as_posix().removesuffix(".gz").rsplit(".", 1)[0] for file in files]


def _table(summary: Sequence[Mapping[str, Any]]) -> str:
    """The summary as aligned text."""
    titles = ("DSC", "HD95 vox", "ASSD vox", "HD95 mm", "ASSD mm")
    lines = [["class", *titles, "one empty", "both empty"]]
    for row in summary:
        cells = []
        for measure in MEASURES:
            mean, std = row[f"{measure}_mean"], row[f"{measure}_std"]
            digits = 4 if measure == "dsc" else 2
            cells.append("" if mean is None else f"{mean:.{digits}f} ± {std:.{digits}f}")
        lines.append([row["class"], *cells, *(str(row[count]) for count in COUNTS)])
    volumes = summary[0]["volumes"] if summary else 0
    return "\n".join([f"{volumes} volumes, mean ± standard deviation of the population", *aligned(lines)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with the same number of cells as lines of text; each column has the width of its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
