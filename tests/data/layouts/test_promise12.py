from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from scripts.data import dataset_records
from scripts.data.description import describe_data
from scripts.data.layouts.promise12 import promise12_cases
from scripts.data.records import missing_cases

ROOT = Path(__file__).resolve().parents[3]
SPLIT = ROOT / "scripts" / "data" / "splits" / "promise12.json"


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(root: Path) -> list[tuple[str, ...]]:
    return [
        (case, *(os.path.relpath(record[key], root) for key in ("image", "label") if key in record))
        for case, records in promise12_cases(root).items()
        for record in records
    ]


def test_flat_folder(tmp_path: Path) -> None:
    touch(tmp_path, "Case01.mhd", "Case01.raw", "Case01_segmentation.mhd", "Case01_segmentation.raw", "Case00.mhd")
    touch(tmp_path, "case_notes.mhd", "Case00_seg.mhd", "Case02.raw", "Case7a.mhd", "readme.txt")
    assert found(tmp_path) == [("Case00", "Case00.mhd"), ("Case01", "Case01.mhd", "Case01_segmentation.mhd")]


def test_archive_folders(tmp_path: Path) -> None:
    touch(tmp_path, "TrainingData_Part1/Case00.mhd", "TrainingData_Part1/Case00_segmentation.mhd")
    touch(tmp_path, "TrainingData_Part2/TrainingData_Part2/Case13.mhd", "TrainingData_Part3/Case26.mhd")
    # cases of other patients with the same names
    touch(tmp_path, "TestData/Case00.mhd", "test_data/Case13.mhd", "livechallenge_test_data/Case26.mhd")
    touch(tmp_path, "latest/Case40.mha", "latest/Case40_segmentation.mha", ".trash/Case41.mhd")
    assert found(tmp_path) == [
        ("Case00", "TrainingData_Part1/Case00.mhd", "TrainingData_Part1/Case00_segmentation.mhd"),
        ("Case13", "TrainingData_Part2/TrainingData_Part2/Case13.mhd"),
        ("Case26", "TrainingData_Part3/Case26.mhd"),
        ("Case40", "latest/Case40.mha", "latest/Case40_segmentation.mha"),
    ]


def test_an_incomplete_download_needs_one_switch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["Case00", "Case01", "Case02", "Case03"]
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": names[:3], "val": names[3:], "test": []}))
    for name in (names[0], names[2], names[3]):
        touch(tmp_path, f"{name}.mhd", f"{name}_segmentation.mhd")
    with pytest.raises(
        FileNotFoundError, match=r"1 of the 3 'train' cases .*: Case01\..*--allow_missing True continues"
    ):
        dataset_records("promise12", tmp_path, "train", split)
    records = dataset_records("promise12", tmp_path, "train", split, labeled=1, allow_missing=True)
    assert [(record["case"], "label" in record) for record in records] == [("Case00", True), ("Case02", False)]
    assert "1 of the 3 'train' cases of" in caplog.text
    known = describe_data("promise12", tmp_path, split, allow_missing=True)
    assert known["missing_cases"] == ["Case01"]
    assert known["split_sha256"]
    assert describe_data("custom", tmp_path, split, allow_missing=True)["missing_cases"] == 1, "no names of patients"
    (tmp_path / "Case01.mhd").touch()
    (tmp_path / "Case01_segmentation.mhd").touch()
    assert "missing_cases" not in describe_data("promise12", tmp_path, split, allow_missing=True)
    for path in tmp_path.glob("Case03*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="1 of the 1 'val' cases"):
        dataset_records("promise12", tmp_path, "val", split, allow_missing=True)


def test_a_case_that_is_there_twice_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "TrainingData_Part1/Case00.mhd", "copy/Case00.mhd")
    with pytest.raises(ValueError, match=r"Part1/Case00\.mhd' and .*copy/Case00\.mhd' have the same name"):
        promise12_cases(tmp_path)


def test_headers_of_either_kind_belong_together(tmp_path: Path) -> None:
    touch(tmp_path, "Case00.mhd", "Case00_segmentation.mha", "Case01.mha", "Case01_segmentation.mhd")
    assert found(tmp_path) == [
        ("Case00", "Case00.mhd", "Case00_segmentation.mha"),
        ("Case01", "Case01.mha", "Case01_segmentation.mhd"),
    ]
    touch(tmp_path, "Case01_segmentation.mha")
    with pytest.raises(ValueError, match=r"segmentation\.mhd' and .*segmentation\.mha' are both the label of .*Case01"):
        promise12_cases(tmp_path)


def test_split_is_the_protocol() -> None:
    parts = json.loads(SPLIT.read_text())
    assert [len(parts[part]) for part in ("train", "val", "test")] == [35, 5, 10]
    assert sorted(chain(*parts.values())) == [f"Case{i:02d}" for i in range(50)]
    assert parts["train"][:4] == ["Case48", "Case35", "Case04", "Case25"]
    assert parts["train"][-1] == "Case03"


@pytest.mark.parametrize(("labeled", "cases"), [(2, 2), (0.07, 2), (0.03, 1), (1, 1)])
def test_first_cases_are_labelled(tmp_path: Path, labeled: float, cases: int) -> None:
    for i in range(50):
        touch(tmp_path, f"Case{i:02d}.mhd", f"Case{i:02d}_segmentation.mhd")
    records = dataset_records("promise12", tmp_path, "train", SPLIT, labeled)
    assert len(records) == 35
    assert [record["case"] for record in records if "label" in record] == ["Case48", "Case35"][:cases]
    assert all("label" in record for record in dataset_records("promise12", tmp_path, "val", SPLIT))


def test_empty_folder_says_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no case in dataset_dir .*CaseNN\.mhd"):
        dataset_records("promise12", tmp_path, "train", SPLIT)


def test_real_cases(real_data: Callable[[str], Path]) -> None:
    """Image and label of every available case, one or all 50, have the size in the image's header."""
    root = real_data("promise12")
    cases = promise12_cases(root)
    assert "Case00" in cases
    records = dataset_records("promise12", root, "train", SPLIT, labeled=2, allow_missing=True)
    missing = missing_cases("promise12", root, SPLIT)
    split = json.loads(SPLIT.read_text())
    assert [record["case"] for record in records] == [name for name in split["train"] if name not in missing]
    for case, (record,) in cases.items():
        assert Path(record["image"]).stem == case
        assert Path(record["label"]).stem == f"{case}_segmentation"
        image, label = (sitk.ReadImage(record[key]) for key in ("image", "label"))
        stated = re.search(rb"^DimSize = (\d+) (\d+) (\d+)", Path(record["image"]).read_bytes(), re.MULTILINE)
        assert stated, record["image"]
        assert image.GetSize() == label.GetSize() == tuple(map(int, stated.groups()))
        assert np.unique(sitk.GetArrayFromImage(label)).tolist() == [0, 1]
