from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import pytest

from scripts.data import dataset_records
from scripts.data.layouts.acdc import acdc_cases
from scripts.utils.errors import FaultsError

PUBLISHED = Path(__file__).resolve().parents[3] / "scripts" / "data" / "splits" / "acdc.json"


def _touch_patient(folder: Path, frames: dict[str, bool]) -> None:
    folder.mkdir(parents=True)
    for name in (f"{folder.name}_4d.nii.gz", "Info.cfg"):
        (folder / name).touch()
    for frame, annotated in frames.items():
        (folder / f"{folder.name}_frame{frame}.nii.gz").touch()
        if annotated:
            (folder / f"{folder.name}_frame{frame}_gt.nii.gz").touch()


@pytest.fixture
def cohort(tmp_path: Path) -> tuple[Path, Path]:
    root = tmp_path / "acdc"
    _touch_patient(root / "training" / "patient090", {"11": True, "04": True})
    _touch_patient(root / "training" / "patient002", {"01": True, "12": True})
    _touch_patient(root / "training" / "patient003", {"01": False, "09": False})
    _touch_patient(root / "testing" / "patient101", {"01": True, "14": True})
    splits = tmp_path / "splits.json"
    parts = {"train": ["patient090", "patient002", "patient003"], "val": [], "test": ["patient101"]}
    splits.write_text(json.dumps(parts))
    return root, splits


def cohort_records(cohort: tuple[Path, Path], part: str, labeled: float | None = None) -> list[dict[str, str]]:
    return dataset_records("acdc", cohort[0], part, cohort[1], labeled)


def _names(records: list[dict[str, str]], key: str) -> list[str | None]:
    return [Path(r[key]).name if key in r else None for r in records]


def test_train_records_follow_the_list_and_find_their_frames(cohort: tuple[Path, Path]) -> None:
    records = cohort_records(cohort, "train", labeled=1)
    assert _names(records, "image") == [
        "patient090_frame04.nii.gz",
        "patient090_frame11.nii.gz",
        "patient002_frame01.nii.gz",
        "patient002_frame12.nii.gz",
        "patient003_frame01.nii.gz",
        "patient003_frame09.nii.gz",
    ]
    assert _names(records, "label") == ["patient090_frame04_gt.nii.gz", "patient090_frame11_gt.nii.gz", *[None] * 4]
    assert [r["case"] for r in records] == [n for n in ("patient090", "patient002", "patient003") for _ in range(2)]


def test_other_parts_are_labelled_or_empty(cohort: tuple[Path, Path]) -> None:
    assert _names(cohort_records(cohort, "test"), "label") == [
        "patient101_frame01_gt.nii.gz",
        "patient101_frame14_gt.nii.gz",
    ]
    assert cohort_records(cohort, "val") == []


def test_layout_without_subfolders(phantom: Path) -> None:
    assert len(dataset_records("acdc", phantom, "train", phantom / "splits.json", labeled=2)) == 12
    assert all("label" in r for r in dataset_records("acdc", phantom, "train", phantom / "splits.json"))


def test_layout_of_the_archive(tmp_path: Path) -> None:
    for folder, name in (("training", "patient001"), ("testing", "patient101")):
        _touch_patient(tmp_path / "database" / folder / name, {"01": True})
    assert _names([r for records in acdc_cases(tmp_path).values() for r in records], "label") == [
        "patient001_frame01_gt.nii.gz",
        "patient101_frame01_gt.nii.gz",
    ]


def test_a_patient_that_is_there_twice_is_named(cohort: tuple[Path, Path]) -> None:
    root = cohort[0]
    _touch_patient(root / "testing" / "patient002", {"01": True, "12": True})
    _touch_patient(root / "patient090", {"09": True})  # other frames of the patient
    _touch_patient(root / "patient003", {})
    with pytest.raises(FaultsError) as info:
        acdc_cases(root)
    assert info.value.faults == [
        f"'{root}/patient090' and '{root}/training/patient090' have the same name: expected one folder per patient.",
        f"'{root}/training/patient002' and '{root}/testing/patient002' have the same name: "
        "expected one folder per patient.",
    ]
    faults: list[str] = []
    assert len(acdc_cases(root, faults)["patient002"]) == 2
    assert faults == info.value.faults


@pytest.mark.parametrize("labeled", [-1, 4])
def test_labelled_count_out_of_range(cohort: tuple[Path, Path], labeled: int) -> None:
    with pytest.raises(ValueError, match=rf"labeled={labeled}: .* 0\.\.3"):
        cohort_records(cohort, "train", labeled=labeled)


def test_missing_things_are_named(cohort: tuple[Path, Path], tmp_path: Path) -> None:
    root, splits = cohort
    with pytest.raises(FileNotFoundError, match=r"nowhere.*creatis.*make demo"):
        dataset_records("acdc", tmp_path / "nowhere", "train", splits, labeled=1)
    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        dataset_records("acdc", root, "train", tmp_path / "none.json", labeled=1)
    with pytest.raises(ValueError, match=r"no part 'validation'"):
        dataset_records("acdc", root, "validation", splits)
    with pytest.raises(FileNotFoundError, match=r"patient003_frame01.*no label file"):
        dataset_records("acdc", root, "train", splits, labeled=3)
    (root / "testing" / "patient101" / "patient101_frame14_gt.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"patient101_frame14.*no label file"):
        dataset_records("acdc", root, "test", splits)
    for name in ("patient002", "patient003"):
        shutil.rmtree(root / "training" / name)
    with pytest.raises(FileNotFoundError, match=r"2 of the 3 'train' cases.*patient002, patient003"):
        dataset_records("acdc", root, "train", splits, labeled=1)


def test_published_split_is_disjoint() -> None:
    splits = json.loads(PUBLISHED.read_text())
    assert [len(splits[part]) for part in ("train", "val", "test")] == [70, 10, 20]
    assert len({name for part in splits.values() for name in part}) == 100
    assert splits["train"][:3] == ["patient099", "patient038", "patient050"]


@pytest.mark.parametrize(("labeled", "slices"), [(1, 32), (3, 68), (7, 136), (70, 1312)])
def test_real_labelled_slices(real_acdc: Path, labeled: int, slices: int) -> None:
    records = dataset_records("acdc", real_acdc, "train", PUBLISHED, labeled=labeled)
    assert len(records) == 140
    assert sum(nib.load(r["label"]).shape[2] for r in records if "label" in r) == slices


def test_splits_that_are_no_json_are_named(phantom: Path, tmp_path: Path) -> None:
    splits = tmp_path / "splits.json"
    splits.write_text("{train: [")
    with pytest.raises(ValueError, match=r"splits\.json: expected .* found invalid JSON"):
        dataset_records("acdc", phantom, "train", splits)
