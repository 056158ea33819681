"""Evaluation report: scores of every volume and their summary, as CSV files and as a table to read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from nibabel.affines import voxel_sizes

from scripts.data.readers import is_photograph
from scripts.metrics import COUNTS, MEASURES, segmentation_scores
from scripts.utils.files import write_csv, write_text
from scripts.utils.provenance import code_version, file_digest, read_record

__all__ = ["SegmentationReport", "aligned", "case_names"]

CHOSEN = "These weights were chosen by their Dice on validation cases: on the same cases it flatters them."


class SegmentationReport:
    """Handler that scores every volume of an evaluation run and writes the report when the run completes.

    It expects the engine's output to be a list of volumes after postprocessing: ``pred`` and ``label``, label maps
    ``[1, ...]`` on the image's own grid, and ``image``, whose metadata names the file. Written to ``output_dir``:

    - ``per_volume.csv``: one row per volume and class, and per volume the mean over the foreground classes.
    - ``summary.csv``: mean and standard deviation (of the population) over the volumes, per class and of the means.
    - ``evaluation.json``, where ``checkpoint`` is given: the part that was scored and the digest of the weights.

    Under the table a line says so where the weights are, by their record, the best on the validation cases and these
    are scored.

    Distances are in voxels and, for volumes, in mm by the image's spacing; they mean mm only where that spacing
    is true. Photographs (2-D) have none. ``one_empty`` counts where only prediction or label has a class,
    ``both_empty`` where neither has.

    ``MetricsSaver`` writes one file per metric with a column per class; it has neither the counts of empty masks
    nor voxels beside mm, and its files are not renamed into place. Hence the tables are written here.

    Evaluation is meant for one process; under several, the first alone writes what it scored itself.

    Args:
        output_dir: folder of the report, created if need be.
        num_classes: number of classes, background included.
        class_names: name of each foreground class by its number as text; others are called by their number.
            None or empty: those that the record of the weights has.
        checkpoint: file of the weights that are evaluated.
        part: the part of the data set that is scored.
        pred_key: key of the predicted label map, where it is another than ``pred``.
        label_key: key of the true one, likewise.
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
        self.num_classes = num_classes
        self.class_names = {**{str(number): name for number, name in (class_names or {}).items()}, "mean": "mean"}
        self.checkpoint = checkpoint
        self.part = part
        self.keys = (pred_key, label_key)
        self.chosen = False
        self.files: list[str] = []
        self.scores: list[dict[str, dict[str, float | None]]] = []

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
        self.scores.clear()
        if self.checkpoint is not None:
            # Now: by the time the last volume is scored, a training may have replaced the file.
            digest = file_digest(self.checkpoint)
            self.about = {"part": self.part, "weights_sha256": digest, "code": code_version()}
            record = read_record(self.checkpoint) or {}
            self.chosen = self.part == "val" and "validation_dice" in record
            if len(self.class_names) == 1:
                self.class_names = {**record.get("class_names", {}), **self.class_names}

    def _score(self, engine: Engine) -> None:
        """Score the volumes of one iteration.

        Raises:
            ValueError: if prediction and label do not lie on the same grid or the label has values beyond the classes.
        """
        output: Any = engine.state.output
        for item in output:
            file = str(item["image"].meta["filename_or_obj"])
            maps = [item[key] for key in self.keys]
            pred, label = (classes[0].detach().cpu().numpy() for classes in maps)
            spacing = None if is_photograph(file) else _spacing(maps[0])
            # A single slice is scored in its plane: as a volume, all of it would be surface.
            flat = [axis for axis, length in enumerate(pred.shape) if length == 1 and pred.shape == label.shape]
            try:
                _check_axes(*maps)
                scores = segmentation_scores(
                    pred.squeeze(tuple(flat)),
                    label.squeeze(tuple(flat)),
                    self.num_classes,
                    None if spacing is None else np.delete(spacing, flat).tolist(),
                )
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from None
            self.files.append(file)
            self.scores.append(scores)

    def _write(self) -> None:
        """Write both files and print the summary."""
        if idist.get_rank() != 0:
            return
        volumes = [
            {"case": case, "class": self._name(key), **scores[key]}
            for case, scores in zip(case_names(self.files), self.scores, strict=True)
            for key in scores
        ]
        summary = [self._summary(key) for key in (self.scores[0] if self.scores else ())]
        write_csv(self.output_dir / "per_volume.csv", volumes)
        write_csv(self.output_dir / "summary.csv", summary)
        if self.checkpoint is not None:
            write_text(self.output_dir / "evaluation.json", json.dumps(self.about, indent=4) + "\n")
        note = f"{CHOSEN}\n" if self.chosen else ""
        print(f"{_table(summary)}\n{note}{self.output_dir / 'summary.csv'}, per volume in per_volume.csv")

    def _name(self, key: str) -> str:
        return self.class_names.get(key, key)

    def _summary(self, key: str) -> dict[str, Any]:
        """The row of one class, or of the mean, over all volumes."""
        row: dict[str, Any] = {"class": self._name(key), "volumes": len(self.scores)}
        for measure in MEASURES:
            values = [value for scores in self.scores if (value := scores[key][measure]) is not None]
            row[f"{measure}_mean"] = float(np.mean(values)) if values else None
            row[f"{measure}_std"] = float(np.std(values)) if values else None
        return {**row, **{count: sum(int(scores[key][count] or 0) for scores in self.scores) for count in COUNTS}}


def _check_axes(pred: Any, label: Any) -> None:
    """Raise where the label file stores its axes in other directions than the image file."""
    if isinstance(pred, MetaTensor) and isinstance(label, MetaTensor) and label.ndim == 4:
        found, expected = ("".join(nib.aff2axcodes(np.asarray(item.affine))) for item in (label, pred))
        if found != expected:
            raise ValueError(f"the label's axes are {found}, expected {expected} as the image's.")


def _spacing(pred: Any) -> list[float] | None:
    """Size of a voxel of the image, on whose grid the prediction lies, in mm; None for 2-D images."""
    if not isinstance(pred, MetaTensor) or pred.ndim < 4:
        return None
    return [float(size) for size in voxel_sizes(np.asarray(pred.affine))]


def case_names(files: Sequence[str]) -> list[str]:
    """Paths below the folder that holds all files, without suffix: equal file names stay apart."""
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
    """Rows of equally many cells as lines of text, each column as wide as its widest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
