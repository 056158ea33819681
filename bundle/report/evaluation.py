"""Reading of an evaluation's files."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scripts.metrics import COUNTS, MEASURES
from scripts.utils.validation import read_json

__all__ = ["MEAN", "Scores", "read_scores"]

MEAN = "mean"
"""Name of the rows with the mean over the foreground classes."""

PER_VOLUME, ABOUT = "per_volume.csv", "evaluation.json"


@dataclass(frozen=True)
class Scores:
    """Scores of all volumes of an evaluation.

    Attributes:
        cases: their names, in the order of the evaluation.
        classes: names of the foreground classes.
        values: by class (:data:`MEAN` included) and measure or count, ``[cases]``; NaN if undefined.
        about: part of the data set and digest of the weights; empty if unknown.
    """

    cases: list[str]
    classes: list[str]
    values: dict[str, dict[str, NDArray[np.float64]]]
    about: dict[str, Any]

    @property
    def unit(self) -> str:
        """``mm`` if there are distances in mm, else ``voxels``.

        Distances in mm that equal those in voxels are of files without a spacing.
        """
        mean = self.values[MEAN]
        if np.isnan(mean["hd95_mm"]).all():
            return "voxels"
        same = all(np.allclose(mean[f"{key}_voxels"], mean[f"{key}_mm"], equal_nan=True) for key in ("hd95", "assd"))
        return "voxels" if same else "mm"


def read_scores(folder: Path) -> Scores:
    """Read the scores of an evaluation's folder.

    Raises:
        FileNotFoundError: if there is no table of volumes.
        ValueError: if the table or the evaluation's description is invalid; the message names the file.
    """
    path = folder / PER_VOLUME
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table; an evaluation writes it.")
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    columns = ("case", "class", *MEASURES, *COUNTS)
    if not rows:
        raise ValueError(f"{path}: expected rows with {', '.join(columns)}; found no row.")
    if missing := [name for name in columns if name not in rows[0]]:
        raise ValueError(f"{path}: expected rows with {', '.join(columns)}; found no {', '.join(missing)}.")
    cases = list(dict.fromkeys(row["case"] for row in rows))
    names = list(dict.fromkeys(row["class"] for row in rows))
    table: dict[tuple[str, str], dict[str, str]] = {(row["case"], row["class"]): row for row in rows}
    if MEAN not in names or len(table) != len(rows) or len(rows) != len(cases) * len(names):
        raise ValueError(f"{path}: expected a row for every case and class, and their {MEAN}; found others.")
    try:
        values = {
            name: {
                key: np.array([float(table[case, name][key] or "nan") for case in cases])
                for key in (*MEASURES, *COUNTS)
            }
            for name in names
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected numbers, found {error}.") from None
    return Scores(cases, [name for name in names if name != MEAN], values, _about(folder / ABOUT))


def _about(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    about: dict[str, Any] = read_json(path, "evaluation")
    return about
