from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from scripts.data import dataset_records
from scripts.data.images import find_images
from scripts.data.layouts.custom import custom_cases, image_files, is_label
from scripts.data.records import read_split
from scripts.utils.errors import FaultsError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def pairs(folder: Path) -> dict[str, str | None]:
    return {
        name: os.path.relpath(record["label"], folder) if "label" in record else None
        for name, (record,) in custom_cases(folder).items()
    }


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
@pytest.mark.parametrize("names", [("Müller", "Müller_gt"), ("images/Dvořák", "masks/Dvořák")])
def test_names_are_compared_in_one_unicode_form(tmp_path: Path, forms: tuple[str, str], names: tuple[str, str]) -> None:
    """The name of a downloaded image, and of its label unzipped by macOS."""
    image, label = (unicodedata.normalize(form, f"{name}.nii") for form, name in zip(forms, names, strict=True))
    touch(tmp_path, image, label)
    assert pairs(tmp_path) == {names[0]: label}
    split = tmp_path / "split.json"
    split.write_text(json.dumps({"train": [unicodedata.normalize("NFD", names[0])]}), encoding="utf-8")
    assert read_split(split) == {"train": [unicodedata.normalize("NFC", names[0])]}
    assert len(dataset_records("custom", tmp_path, "train", split)) == 1


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (
            ["volume-3.nii", "segmentation-3.nii", "volume-30.nii"],
            {"volume-3": "segmentation-3.nii", "volume-30": None},
        ),
        (["p1/ct.nii.gz", "p1/segmentation.nii.gz"], {"p1/ct": "p1/segmentation.nii.gz"}),
        (["p1/t1.nii", "p1/t2.nii", "p1/mask.nii"], {"p1/t1": None, "p1/t2": None}),
        (["p1/ct.nii", "p1/segmentations/liver.nii", "p1/segmentations/spleen.nii"], {"p1/ct": None}),
        (["images/a.nii", "segmentations/a.nii"], {"images/a": "segmentations/a.nii"}),
    ],
)
def test_what_is_called_a_segmentation_is_no_image(
    tmp_path: Path, files: list[str], expected: dict[str, str | None]
) -> None:
    touch(tmp_path, *files)
    assert pairs(tmp_path) == expected
    found = [os.path.relpath(record["image"], tmp_path) for record in find_images(tmp_path)]
    assert [name.rpartition(".nii")[0] for name in found] == sorted(expected)


def test_further_channels_are_no_patients(tmp_path: Path) -> None:
    touch(tmp_path, "imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTr/b_0001.nii.gz", "labelsTr/a.nii.gz")
    for find in (custom_cases, find_images):
        with pytest.raises(ValueError, match=r"a_0001\.nii\.gz' is a further channel of '.*a_0000\.nii\.gz'"):
            find(tmp_path)
    (tmp_path / "imagesTr" / "a_0001.nii.gz").unlink()
    assert pairs(tmp_path)["imagesTr/a_0000"] == "labelsTr/a.nii.gz"


def test_where_no_label_is_found_the_images_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii", "a_myo.nii", "b.nii", "b_myo.nii")
    with pytest.raises(FileNotFoundError, match=r"has a label; taken for images: \S*/a\.nii, .*\(4 in all\)"):
        dataset_records("custom", tmp_path, "train")


@pytest.mark.parametrize(
    ("files", "pairs"),
    [
        (["a/x.nii.gz", "a/x_gt.nii.gz", "b/y.mha"], {"a/x": "a/x_gt.nii.gz", "b/y": None}),
        (["images/x.png", "masks/x.png", "images/y.jpg"], {"images/x": "masks/x.png", "images/y": None}),
        (["s/imagesTr/x_0000.nii.gz", "s/labelsTr/x.nii.gz"], {"s/imagesTr/x_0000": "s/labelsTr/x.nii.gz"}),
        (["images/x.jpg", "labels/x_mask.png", ".hidden/z.png"], {"images/x": "labels/x_mask.png"}),
        (["x.nii", "x_GT.nii", "Images/y.png", "Masks/Y.PNG"], {"x": "x_GT.nii", "Images/y": "Masks/Y.PNG"}),
        (["A_Input/x.jpg", "A_GroundTruth/x_segmentation.png"], {"A_Input/x": "A_GroundTruth/x_segmentation.png"}),
        (["imagesTs/x_0000.nii", "labelsTs/x.nii"], {"imagesTs/x_0000": "labelsTs/x.nii"}),
        (["s/images/p1/a.nii", "s/labels/p1/a.nii"], {"s/images/p1/a": "s/labels/p1/a.nii"}),
        (["s/images/p1/a.nii", "s/labels/p2/a.nii"], {"s/images/p1/a": None}),
        (["masks/images/a.png", "masks/masks/a.png"], {"masks/images/a": "masks/masks/a.png"}),
        (["A_Input/p/x.jpg", "B_GroundTruth/p/x.png"], {"A_Input/p/x": "B_GroundTruth/p/x.png"}),
        (["A_Input/p/x.jpg", "B_GroundTruth/x.png"], {"A_Input/p/x": None}),
        (["x.nii", "x_prob.nii", "x_4d.nii", "x_pred.nii", "x_superpixels.png"], {"x": None}),
    ],
)
def test_labels_go_by_the_names_of_the_images(tmp_path: Path, files: list[str], pairs: dict[str, str | None]) -> None:
    touch(tmp_path, *files, "notes.txt")
    cases = custom_cases(tmp_path)
    found = {name: records[0].get("label") for name, records in cases.items()}
    assert found == {name: label and str(tmp_path / label) for name, label in pairs.items()}
    assert all(len(records) == 1 and records[0]["case"] == name for name, records in cases.items())


def test_labels_in_a_linked_folder_are_found(tmp_path: Path) -> None:
    touch(tmp_path, "set/images/x.png", "elsewhere/x.png")
    (tmp_path / "set" / "labels").symlink_to(tmp_path / "elsewhere")
    (record,) = custom_cases(tmp_path / "set")["images/x"]
    assert record["label"] == str(tmp_path / "set" / "labels" / "x.png")


def test_files_that_differ_in_their_suffix_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "x.png", "x.jpg", "y.nii", "y_gt.nii", "y_gt.mha", "gone_gt.nii", "gone_gt.mha")
    with pytest.raises(FaultsError, match=r"x\.jpg' and .*x\.png' differ only in their suffix") as info:
        custom_cases(tmp_path)
    assert [("y_gt.mha' and" in fault, "y_gt.nii'" in fault) for fault in info.value.faults] == [
        (False, False),
        (True, True),
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["images/x.nii", "labels/x.nii", "images/x_seg.nii"], r"x_seg\.nii' and .* are both labels of .*x\.nii'"),
        (
            ["images/x.png", "labels/x.png", "masks/x_mask.png"],
            r"are both labels of .*x\.png': expected one of the two",
        ),
        (["x.png", "X.png", "x_mask.png"], r"X\.png' and .*x\.png' have the same label .*x_mask\.png'"),
        (["x_0000.nii", "x.nii", "x_gt.nii"], r"x\.nii' and .*x_0000\.nii' have the same label .*x_gt\.nii'"),
    ],
)
def test_labels_that_may_be_meant_otherwise_stop_training_alone(tmp_path: Path, files: list[str], message: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(FaultsError, match=message) as info:
        custom_cases(tmp_path)
    assert len(info.value.faults) == 1
    assert len(image_files(tmp_path)) == len([name for name in files if not is_label(name[: name.rindex(".")].lower())])


def test_links_that_lead_nowhere_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "x.png")
    (tmp_path / "x_mask.png").symlink_to(tmp_path / "gone_mask.png")
    (tmp_path / "readme").symlink_to(tmp_path / "gone")
    with pytest.raises(FaultsError, match=r"x_mask\.png' is a broken link") as info:
        custom_cases(tmp_path)
    assert len(info.value.faults) == 1
    assert image_files(tmp_path) == [tmp_path / "x.png"]
    (tmp_path / "y.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(FaultsError, match=r"y\.png' is a broken link"):
        image_files(tmp_path)


def test_only_labelled_cases_validate_in_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.png" for i in range(9)), "0_mask.png", "1_mask.png", "2_mask.png")
    val = dataset_records("custom", tmp_path, "val")
    assert [int(Path(r["image"]).stem) in (0, 1, 2) for r in val] == [True]
    assert len(dataset_records("custom", tmp_path, "train")) == 8
