from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts.data import dataset_records
from scripts.data.description import describe_data
from scripts.data.images import evaluation_records, find_images
from scripts.data.layouts.datalist import named_classes, read_class_values, read_datalist
from scripts.utils.provenance import file_digest

LABELS = {"background": 0, "anterior": 1, "posterior": 2}


def nnunet(root: Path, labelled: int = 6, unlabelled: int = 2, ending: str = ".nii.gz", **more: Any) -> Path:
    """Dataset004_Hippocampus in nnU-Net's layout, with some images without labels."""
    folder = root / "Dataset004_Hippocampus"
    for name in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / name).mkdir(parents=True)
    for i in range(labelled + unlabelled):
        (folder / "imagesTr" / f"h_{i:03}_0000{ending}").touch()
        if i < labelled:
            (folder / "labelsTr" / f"h_{i:03}{ending}").touch()
    (folder / "imagesTs" / f"h_900_0000{ending}").touch()
    (folder / "imagesTr" / f"._h_000_0000{ending}").touch()  # macOS
    about = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": labelled, "file_ending": ending, **more}
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


def cases(records: list[dict[str, str]]) -> list[tuple[str, bool]]:
    return [(record["case"], "label" in record) for record in records]


@pytest.mark.parametrize("ending", [".nii.gz", ".mha", ".png"])
def test_the_folder_is_read_as_it_is(tmp_path: Path, ending: str) -> None:
    folder = nnunet(tmp_path, ending=ending)
    for source in (folder, folder / "dataset.json"):
        train, val = (dataset_records("custom", source, part) for part in ("train", "val"))
        assert len(val) == 1
        assert sorted(cases(train) + cases(val)) == [(f"h_{i:03}", i < 6) for i in range(8)]
        assert cases(train)[-2:] == [("h_006", False), ("h_007", False)]
        assert read_class_values(folder / "dataset.json")[0] == {"0": "background", "1": "anterior", "2": "posterior"}
        assert named_classes({1: "front"}, source)["1"] == "front", "a command line gives the number as such"
        assert named_classes({"2": "back"}, source) == {"1": "anterior", "2": "back"}
    assert train[0]["image"].endswith(f"{train[0]['case']}_0000{ending}")
    assert [Path(record["image"]).name for record in find_images(folder / "dataset.json")] == [f"h_900_0000{ending}"]


def test_folds_decide_what_validates(tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    names = [f"h_{i:03}" for i in range(6)]
    folds = [{"train": names[2:], "val": names[:2]}, {"train": names[:4][::-1], "val": names[4:]}]
    splits = folder / "splits_final.json"
    splits.write_text(json.dumps(folds))
    for fold, (train, val) in enumerate((f["train"], f["val"]) for f in folds):
        assert cases(dataset_records("custom", folder, "val", fold=fold)) == [(name, True) for name in val]
        expected = [*((name, True) for name in train), ("h_006", False), ("h_007", False)]
        assert cases(dataset_records("custom", folder, "train", fold=fold)) == expected
    assert cases(evaluation_records("custom", folder, "val", fold=1)) == [("h_004", True), ("h_005", True)]
    record = describe_data("custom", folder, fold=1)
    assert record == {"data": "custom", "split": "splits_final.json", "split_sha256": file_digest(splits), "fold": 1}
    with pytest.raises(ValueError, match=r"splits_final\.json: has the folds 0 to 1, but no fold 2"):
        dataset_records("custom", folder, "val", fold=2)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([{"train": ["h_000"], "val": ["h_999"]}], "names 1 cases that are not in imagesTr, the first 'h_999'"),
        ([{"train": ["h_000"], "val": ["h_000"]}], "case 'h_000' of fold 0 is in both train and val"),
        ([{"train": ["h_000"], "val": ["h_001"]}], "fold 0 leaves out 4 labelled cases, the first 'h_002'"),
        ([{"train": ["h_000"]}], "entry 1: lacks val"),
        ({"train": []}, "expected nnU-Net's list of folds"),
        ([], "but no fold 0"),
    ],
)
def test_faulty_folds_are_named(tmp_path: Path, folds: Any, message: str) -> None:
    folder = nnunet(tmp_path)
    (folder / "splits_final.json").write_text(json.dumps(folds))
    with pytest.raises(ValueError, match=rf"splits_final\.json: .*{message}"):
        dataset_records("custom", folder, "train")


def test_channels_in_files_of_their_own_are_refused(tmp_path: Path) -> None:
    folder = nnunet(tmp_path)
    (folder / "imagesTr" / "h_001_0001.nii.gz").touch()
    with pytest.raises(ValueError, match=r"h_001_0001\.nii\.gz' is another channel of case 'h_001'"):
        dataset_records("custom", folder, "train")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"labels": {**LABELS, "ignore": 3}}, "'ignore' is not supported"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": [2]}}, "labels: core: expected names by class"),
        ({"file_ending": "/../../x"}, "file_ending: expected a file's suffix"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    folder = nnunet(tmp_path)
    about = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**about, **more}))
    with pytest.raises(ValueError, match=rf"dataset\.json: .*{message}"):
        read_class_values(folder / "dataset.json")


def test_folds_of_a_datalist(tmp_path: Path) -> None:
    """MONAI's Auto3DSeg numbers the folds entry by entry."""
    entries = []
    for i in range(6):
        for name in (f"{i}.nii", f"{i}_m.nii"):
            (tmp_path / name).touch()
        entries.append({"image": f"{i}.nii", "label": f"{i}_m.nii", "case": f"h_{i}", "fold": i % 3})
    del entries[5]["label"]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"training": entries}))
    for fold in range(3):
        found = {part: [r["case"] for r in records] for part, records in read_datalist(path, fold=fold).items()}
        val = [f"h_{i}" for i in range(5) if i % 3 == fold]
        assert found == {"val": val, "train": [f"h_{i}" for i in range(6) if f"h_{i}" not in val]}
    with pytest.raises(ValueError, match=r"list\.json: has the folds 0, 1, 2, but no fold 3"):
        read_datalist(path, fold=3)
    path.write_text(json.dumps({"training": entries, "validation": [{"image": "5_m.nii"}]}))
    assert [r["case"] for r in read_datalist(path)["train"]] == [f"h_{i}" for i in range(6)]
