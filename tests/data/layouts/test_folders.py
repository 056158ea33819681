"""Folders that are called like files, as some archives have them, each file in a folder of its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts.data.images import find_images
from scripts.data.layouts.acdc import acdc_cases
from scripts.data.layouts.custom import custom_cases
from scripts.data.layouts.datalist import read_datalist
from scripts.data.layouts.isic import isic_cases
from scripts.data.layouts.promise12 import promise12_cases

INPUT, TRUTH = "ISIC2018_Task1-2_Training_Input", "ISIC2018_Task1_Training_GroundTruth"
LAYOUTS: dict[str, tuple[Callable[[Path], Any], str, str, str]] = {
    "acdc": (acdc_cases, "patient001/patient001_frame{}.nii.gz", "patient001/patient001_frame{}_gt.nii.gz", "01"),
    "promise12": (promise12_cases, "Case{}.mhd", "Case{}_segmentation.mhd", "00"),
    "isic": (isic_cases, INPUT + "/ISIC_{}.jpg", TRUTH + "/ISIC_{}_segmentation.png", "1"),
    "custom": (custom_cases, "{}.nii.gz", "{}_gt.nii.gz", "1"),
    "nnunet": (read_datalist, "imagesTr/{}_0000.nii.gz", "labelsTr/{}.nii.gz", "1"),
    "inference": (find_images, "a/{}.png", "a/{}_gt.png", "1"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_that_are_called_like_files_are_none(tmp_path: Path, layout: str) -> None:
    read, image, label, name = LAYOUTS[layout]
    for pattern in (image, label):
        (tmp_path / pattern.format(name)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / pattern.format(name)).touch()
    source = tmp_path
    if layout == "nnunet":
        source = tmp_path / "dataset.json"
        source.write_text(json.dumps({"labels": {"background": 0, "x": 1}, "file_ending": ".nii.gz"}))
    before = read(source)
    assert before
    for number in ("02", "2", "99"):
        for pattern in (image, label):
            (tmp_path / pattern.format(number)).mkdir()
    (tmp_path / label.format("99") / "notes.txt").touch()
    assert read(source) == before


def test_files_in_folders_of_their_name_are_found(tmp_path: Path) -> None:
    """Where a layout does not fix the folders, they are cases like any other."""
    for name in ("a.nii.gz", "b.nii.gz", "a_gt.nii.gz"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name.removesuffix(".gz")).touch()
    assert [Path(record["image"]).parent.name for record in find_images(tmp_path)] == ["a.nii.gz", "b.nii.gz"]


def test_a_datalist_names_no_folder(tmp_path: Path) -> None:
    (tmp_path / "a.nii.gz").mkdir()
    (tmp_path / "list.json").write_text(json.dumps({"training": ["a.nii.gz"]}))
    with pytest.raises(ValueError, match=r"a\.nii\.gz', which is no file"):
        read_datalist(tmp_path / "list.json")
