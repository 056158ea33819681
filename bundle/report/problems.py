"""Problems: cases that need a review, each with the reason in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, EnsureChannelFirstd

from bundle.report.cases import Case, turning, upright
from bundle.report.evaluation import MEAN, Scores
from bundle.report.runs import Run
from scripts.data import LoadImageVolumed, ThroughPlaneLastd
from scripts.data.axis import THICKEST
from scripts.data.cache import stored_files
from scripts.data.readers import is_photograph
from scripts.utils.files import write_text
from scripts.utils.provenance import file_digest
from scripts.utils.threads import in_threads

__all__ = ["MEASURED", "Problem", "empty_predictions", "outliers", "training_ranges", "unlike_training"]

VOLUME_FACTOR = 1.5
"""Ratio between predicted and labelled volume, in either direction, from which a volume is an outlier."""

MEASURED = {
    "field of view": (" mm", 0),
    "pixel": (" mm", 2),
    "mean intensity": ("", 3),
    "spread of intensities": ("", 3),
}
"""Features that are compared with the training images', with unit and digits; mm for volumes only."""

MARGIN = 0.05


@dataclass(frozen=True)
class Problem:
    """One problem of one case.

    Attributes:
        case: index of the case.
        what: description.
    """

    case: int
    what: str


def empty_predictions(cases: Sequence[Case], names: Sequence[str]) -> list[Problem]:
    """Classes that only the label or only the prediction contains."""
    found = []
    for index, case in enumerate(cases):
        for number, name in enumerate(names, start=1):
            if case.labeled[number] and not case.predicted[number]:
                found.append(Problem(index, f"{name}: nothing predicted, {case.labeled[number]:,} voxels in the label"))
            if case.predicted[number] and not case.labeled[number]:
                found.append(Problem(index, f"{name}: {case.predicted[number]:,} voxels predicted, none in the label"))
    return found


def outliers(cases: Sequence[Case], scores: Scores) -> list[Problem]:
    """Scores below Tukey's fence, and volumes far from the label's.

    The fence is the first quartile minus 1.5 interquartile ranges, over the cases; per class and for the mean.
    """
    found = []
    for name in (*scores.classes, MEAN):
        values = scores.values[name]["dsc"]
        first, third = np.percentile(values, [25, 75])
        fence = first - 1.5 * (third - first)
        found += [
            Problem(int(i), f"DSC {name} {values[i]:.3f} (fence {fence:.3f})") for i in np.flatnonzero(values < fence)
        ]
    for index, case in enumerate(cases):
        for number, name in enumerate(scores.classes, start=1):
            label, prediction = int(case.labeled[number]), int(case.predicted[number])
            if label and prediction and not 1 / VOLUME_FACTOR <= prediction / label <= VOLUME_FACTOR:
                found.append(Problem(index, f"volume {name} × {prediction / label:.2f}"))
    return found


def training_ranges(run: Run) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each of :data:`MEASURED` over the run's training images.

    They are cached with the preprocessed volumes, by the images' content and the plane of the slices.

    Raises:
        FileNotFoundError: if training images are missing.
        ValueError: if one cannot be read.
    """
    files = [str(record["image"]) for record in run.get("train#dataset#data")]
    folder = Path(run.get("cache_dir")) / "report"
    steps = turning(run.get("train#preprocessing"))
    axis = next((step.axis for step in steps if isinstance(step, ThroughPlaneLastd)), THICKEST)

    def facts(file: str) -> dict[str, float]:
        kept = folder / f"{file_digest(*stored_files(Path(file)))}-{axis}.json"
        keys = [key for key, (unit, _) in MEASURED.items() if not (unit and is_photograph(file))]
        # what is damaged is made anew
        with suppress(FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
            known = json.loads(kept.read_text(encoding="utf-8"))
            return {key: float(known[key]) for key in keys}
        found = _facts_of_file(file, steps)
        write_text(kept, json.dumps(found) + "\n")
        return found

    every = in_threads(facts, files, "measuring the training images")
    return {key: (min(f[key] for f in every), max(f[key] for f in every)) for key in every[0]}


def unlike_training(cases: Sequence[Case], ranges: dict[str, tuple[float, float]]) -> list[Problem]:
    """Cases that lie more than 5 % below or above the training images' range."""
    found = []
    for index, case in enumerate(cases):
        for key, value in _facts(case.intensity, case.size, case.spacing).items():
            if key not in ranges:
                continue
            low, high = ranges[key]
            unit, digits = MEASURED[key]
            if not low * (1 - MARGIN) <= value <= high * (1 + MARGIN):
                found.append(
                    Problem(index, f"{key} {value:.{digits}f}{unit}, in training {low:.{digits}f}-{high:.{digits}f}")
                )
    return found


def _facts_of_file(file: str, steps: Sequence[Any]) -> dict[str, float]:
    load = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])
    image = upright(load({"image": file})["image"], steps)
    pixels = image.numpy().astype(np.float64)
    spacing = None if is_photograph(file) else tuple(np.asarray(image.pixdim, dtype=np.float64))
    within = None if spacing is None else (1, 2, 3)  # as in a case's facts
    dark, bright = (bound(pixels, axis=within, keepdims=True) for bound in (np.min, np.max))
    scaled = (pixels - dark) / np.maximum(bright - dark, 1e-9)
    return _facts((float(scaled.mean()), float(scaled.std())), image.shape[1:], spacing)


def _facts(intensity: tuple[float, float], size: Sequence[int], spacing: Sequence[float] | None) -> dict[str, float]:
    """The :data:`MEASURED` of an image; size and spacing are in plane first, in either order."""
    found = {"mean intensity": intensity[0], "spread of intensities": intensity[1]}
    if spacing is not None:
        found["field of view"] = float(np.mean(np.multiply(size[:2], spacing[:2])))
        found["pixel"] = float(np.mean(spacing[:2]))
    return found
