from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from scripts.data import dataset_records
from scripts.data.images import find_images
from scripts.data.layouts.custom import custom_cases
from scripts.data.records import read_split


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
