from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from scripts.data import dataset_records
from scripts.data.layouts.datalist import read_class_values, read_datalist
from scripts.utils.errors import FaultsError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(root: Path, **lists: Any) -> Path:
    path = root / "lists" / "datalist.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(lists))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    touch(tmp_path, *(f"{i}.nii.gz" for i in range(12)), *(f"{i}_m.nii.gz" for i in range(12)))
    return tmp_path


def entry(i: int, label: bool = True, case: str | None = None) -> dict[str, str]:
    return {
        "image": f"../{i}.nii.gz",
        **({"label": f"../{i}_m.nii.gz"} if label else {}),
        **({"case": case} if case else {}),
    }


def numbers(records: list[dict[str, str]]) -> list[tuple[int, bool]]:
    return [(int(Path(r["image"]).name.split(".")[0]), "label" in r) for r in records]


def test_paths_are_relative_to_the_list_and_parts_are_named(folder: Path) -> None:
    path = write(folder, training=[entry(0), entry(1, label=False)], validation=[entry(2)], testing=["../3.nii.gz"])
    parts = read_datalist(path)
    assert {part: numbers(records) for part, records in parts.items()} == {
        "train": [(0, True), (1, False)],
        "val": [(2, True)],
        "test": [(3, False)],
    }
    assert parts["train"][0]["label"] == str(folder / "0_m.nii.gz")


def test_a_datalist_stands_for_the_data_set(folder: Path) -> None:
    path = write(folder, training=[entry(3), entry(1), entry(2)], validation=[entry(4)])
    assert numbers(dataset_records("custom", path, "train", labeled=1)) == [(3, True), (1, False), (2, False)]
    assert numbers(dataset_records("acdc", path, "val", splits="of no account")) == [(4, True)]
    with pytest.raises(ValueError, match="has no part 'test'"):
        dataset_records("custom", path, "test")


def test_without_a_validation_list_labelled_cases_validate_whole(folder: Path) -> None:
    entries = [entry(i, label=i < 8, case=f"p{i // 2}") for i in range(12)]
    path = write(folder, training=entries)
    train, val = (dataset_records("custom", path, part) for part in ("train", "val"))
    assert len(val) == 2
    assert val[0]["case"] == val[1]["case"]
    assert all("label" in r for r in val)
    assert not {r["case"] for r in train} & {r["case"] for r in val}
    assert len(train) == 10
    assert sum("label" in r for r in train) == 6
    assert dataset_records("custom", path, "val") == val


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"training": [entry(0)], "validation": [entry(0)]}, r"0\.nii\.gz' is in training and in validation"),
        (
            {"training": [entry(0, case="a")], "test": [entry(1, case="a")]},
            "case 'a' has images in 'train' and in 'test'",
        ),
        ({"training": [{"label": "../0_m.nii.gz"}]}, "training: entry 1: lacks image"),
        ({"training": [{"image": "../0.nii.gz", "label": 3}]}, "entry 1: label: expected the path of one file"),
        ({"training": [{"image": "../0.nii.gz", "label": ""}]}, "entry 1: label: expected the path of one file"),
        (
            {"training": [entry(0)], "validation": {"image": "x"}},
            "validation: expected a list of entries, or null, found",
        ),
        ({"training": [entry(0), {**entry(1), "label": "../0_m.nii.gz"}]}, r"have the same label '.*0_m\.nii\.gz'"),
        ({"training": [entry(0)], "label_values": [0, True]}, "label_values: entry 2: expected a number, found True"),
        ({"training": [entry(0)], "label_values": [0, float("nan")]}, "expected a datalist, found invalid JSON: NaN"),
        ({"training": [entry(0)], "label_values": [0, 0]}, "label_values: expected different numbers"),
        ({"training": [{"image": "../0.nii.gz\0"}]}, "image: expected the path of one file"),
        ({"images": []}, "expected a datalist with lists under training"),
    ],
)
def test_faulty_lists_are_named(folder: Path, lists: dict[str, Any], message: str) -> None:
    path = write(folder, **lists)
    with pytest.raises(ValueError, match=message) as info:
        read_datalist(path)
    assert "datalist.json" in str(info.value)


def test_names_of_classes_are_read_either_way_round(folder: Path) -> None:
    for labels in ({"0": "background", "1": "ball"}, {"background": 0, "ball": 1}):
        path = write(folder, training=[entry(0)], labels=labels, label_values=[0, 255.0])
        assert read_class_values(path) == ({"0": "background", "1": "ball"}, [0, 255])
    for labels in ({"ball": 1, "cup": 1}, {"1": "ball", "ball": 1}, {"one": "ball"}):
        with pytest.raises(ValueError, match=r"datalist\.json: labels"):
            read_class_values(write(folder, training=[entry(0)], labels=labels))


def test_a_byte_order_mark_is_no_part_of_a_list(folder: Path) -> None:
    path = write(folder, training=[entry(0)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert numbers(read_datalist(path)["train"]) == [(0, True)]


def test_missing_files_are_named(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"datalist\.json names '.*99\.nii\.gz', which does not exist"):
        read_datalist(write(folder, training=[entry(99)]))
    with pytest.raises(FileNotFoundError, match=r"none\.json' does not exist"):
        read_datalist(folder / "none.json")
    with pytest.raises(ValueError, match="no case to train with"):
        dataset_records("custom", write(folder, validation=[entry(0)]), "train")


def test_all_faults_of_a_list_are_found_and_the_message_stays_short(folder: Path) -> None:
    entries = [entry(0, case="a"), entry(0, case="b"), {"image": "../1.nii.gz", "label": "../no.nii.gz"}, {"image": 5}]
    path = write(folder, training=[*entries, entry(90), entry(91)], validation=[entry(2, case="a")])
    with pytest.raises(FaultsError) as info:
        read_datalist(path)
    wrong = "entry 4: image: expected the path of one file, found 5"
    expected = (wrong, "training twice", "no.nii.gz", "/90.", "90_m", "/91.", "91_m", "case 'a' has")
    for fault, what in zip(info.value.faults, expected, strict=True):
        assert what in fault
    assert str(info.value).count("\n") == 5
    assert str(info.value).endswith("... and 3 more")


def test_training_without_any_label_is_refused_before_a_file_is_read(folder: Path) -> None:
    path = write(folder, training=[entry(0, label=False), entry(1, label=False)], validation=[entry(2)])
    for labeled in (None, 1):
        with pytest.raises(FileNotFoundError, match=r"no training image of '.*datalist\.json' has a label"):
            dataset_records("custom", path, "train", labeled=labeled)


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_found_in_whatever_unicode_form(tmp_path: Path, forms: tuple[str, str]) -> None:
    listed, stored = (unicodedata.normalize(form, "Dvořák/é.nii") for form in forms)
    (tmp_path / stored).parent.mkdir()
    (tmp_path / stored).touch()
    (tmp_path / "list.json").write_text(json.dumps({"training": [listed]}), encoding="utf-8")
    (record,) = read_datalist(tmp_path / "list.json")["train"]
    assert record["image"] == str(tmp_path / stored)
