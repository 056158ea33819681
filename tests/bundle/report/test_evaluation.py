"""Reading the files of an evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bundle.report.evaluation import MEAN, read_scores

HEAD = "case,class,dsc,hd95_voxels,assd_voxels,hd95_mm,assd_mm,one_empty,both_empty\n"
ROWS = "a,LV,0.9,1,0.5,,,0,0\na,mean,0.9,1,0.5,,,0,0\nb,LV,0,7,7,,,1,0\nb,mean,0,7,7,,,1,0\n"
ABOUT = {"part": "val", "weights_sha256": "0" * 64, "code": "commit 1234567"}


def test_scores_are_those_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "per_volume.csv").write_text(HEAD + ROWS)
    (tmp_path / "evaluation.json").write_text(json.dumps(ABOUT))
    scores = read_scores(tmp_path)
    assert (scores.cases, scores.classes, scores.about) == (["a", "b"], ["LV"], ABOUT)
    assert scores.values["LV"]["dsc"].tolist() == [0.9, 0.0]
    assert scores.values[MEAN]["one_empty"].tolist() == [0, 1]
    assert np.isnan(scores.values["LV"]["hd95_mm"]).all()
    assert scores.unit == "voxels"


def test_distances_that_equal_the_voxels_are_of_files_without_a_spacing(tmp_path: Path) -> None:
    for spacing, unit in ((1, "voxels"), (1.5, "mm")):
        rows = [
            f"{case},{of},0.9,{d},2,{d * spacing},{2 * spacing},0,0"
            for case, d in (("a", 1), ("b", 7))
            for of in ("LV", "mean")
        ]
        (tmp_path / "per_volume.csv").write_text(HEAD + "\n".join(rows))
        assert read_scores(tmp_path).unit == unit


@pytest.mark.parametrize(
    ("table", "about", "message"),
    [
        (None, None, "no such table"),
        ("case,class\na,LV\n", None, "found no dsc"),
        (HEAD, None, "found no row"),
        (HEAD + ROWS.replace("b,LV,0,7,7,,,1,0\n", ""), None, "a row for every case and class"),
        (HEAD + ROWS + "b,LV,0,7,7,,,1,0\n", None, "a row for every case and class"),
        (HEAD + ROWS.replace("0.9,1,0.5", "high,1,0.5"), None, "expected numbers"),
        (HEAD + ROWS, "{", "found invalid JSON"),
        (HEAD + ROWS, "[]", r"a JSON object, found \[\]"),
        (HEAD + ROWS, "[" * 10_000, "too deeply nested"),
    ],
)
def test_damaged_evaluations_are_refused_by_name(
    tmp_path: Path, table: str | None, about: str | None, message: str
) -> None:
    for name, text in (("per_volume.csv", table), ("evaluation.json", about)):
        if text is not None:
            (tmp_path / name).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        read_scores(tmp_path)
    assert str(tmp_path) in str(error.value)
