"""Consistency checks: grids of images and labels, classes and the values of label files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd
from PIL import Image

from scripts.data import LabelValuesd, LoadImageVolumed, VolumeDataset, cached_volumes
from scripts.data.checks import check_classes, check_grids, remarks

SHAPE = (20, 24, 5)
AFFINE = np.array([[-1.5, 0, 0.3, 12], [0, -1.45, 0, -7], [0.1, 0, 8, 40], [0, 0, 0, 1]])  # oblique


def load(path: Path) -> MetaTensor:
    volume: MetaTensor = Compose([LoadImageVolumed("file"), EnsureChannelFirstd("file")])({"file": str(path)})["file"]
    return volume


def compare(folder: Path, label_affine: np.ndarray, shape: tuple[int, ...] = SHAPE) -> None:
    for name, affine in (("image", AFFINE), ("label", label_affine)):
        nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), folder / f"{name}.nii.gz")
    record = {name: str(folder / f"{name}.nii.gz") for name in ("image", "label")}
    check_grids(load(folder / "image.nii.gz"), load(folder / "label.nii.gz"), record)


def moved(x: float = 0, y: float = 0, z: float = 0) -> np.ndarray:
    """The grid a few mm off."""
    shift = np.eye(4)
    shift[:3, 3] = x, y, z
    return shift @ AFFINE


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        # the last of 24 voxels is 23 voxels away
        (
            AFFINE @ np.diag([2, 2, 0.5, 1]),
            r"23 voxels apart \(label spacing 3\.007 x 2\.9 x 4\.003 mm, .*1\.503 x 1\.45",
        ),
        (moved(x=100, z=50), "voxels apart"),
        (moved(z=4.5), r"0\.56. voxels apart"),
        (AFFINE[:, [0, 2, 1, 3]], "orientation LSP is not the image's LPS"),
        (AFFINE @ np.diag([-1, 1, 1, 1]), "orientation RPS is not the image's LPS"),
    ],
)
def test_labels_on_another_grid_are_refused(tmp_path: Path, affine: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}/label.nii.gz: .*{message}"):
        compare(tmp_path, affine)


def test_grids_may_differ_by_what_headers_round(tmp_path: Path) -> None:
    compare(tmp_path, AFFINE.astype(np.float32) @ np.diag([1.01, 0.99, 1.01, 1]))
    compare(tmp_path, moved(x=0.7, y=-0.7, z=3.9))
    compare(tmp_path, AFFINE @ np.diag([1, 1, 0.1, 1]), (20, 24, 1))  # the thickness of a single slice


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.3, 0.3, 5)])
def test_labels_of_photographs_have_any_spacing(tmp_path: Path, spacing: tuple[float, ...]) -> None:
    Image.fromarray(np.zeros((24, 20, 3), np.uint8)).save(tmp_path / "a.png")
    record = {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "a.nii.gz")}
    affine = np.diag([*spacing, 1]) * [[-1], [-1], [1], [1]]
    affine[:2, 3] = 30, 40
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 1), np.uint8), affine), record["label"])
    check_grids(load(tmp_path / "a.png"), load(tmp_path / "a.nii.gz"), record)
    nib.save(nib.Nifti1Image(np.zeros((20, 24, 1), np.uint8), np.eye(4)), record["label"])
    with pytest.raises(ValueError, match="orientation RAS is not the image's LPS"):
        check_grids(load(tmp_path / "a.png"), load(tmp_path / "a.nii.gz"), record)


@pytest.mark.parametrize(
    ("num_classes", "values", "message"),
    [
        (300, None, r"num_classes: expected a whole number in 2\.\.256, .*found 300"),
        (1, None, "num_classes: .*found 1"),
        (2.5, None, r"num_classes: .*found 2\.5"),
        (3, [0, 255], r"label_values: expected one value for each of the 3 classes .*found \[0, 255\]"),
        (2, [0, 127, 255], r"label_values: expected one value for each of the 2 classes"),
        (2, 255, "label_values: expected a list of different numbers, one per class, found 255"),
        (2, [255, 255], "label_values: expected a list of different numbers"),
        (2, ["0", "255"], "label_values: expected a list of different numbers"),
    ],
)
def test_classes_that_cannot_be_are_refused_before_a_file_is_read(
    tmp_path: Path, num_classes: Any, values: Any, message: str
) -> None:
    def preprocessing() -> Compose:
        steps = [LoadImageVolumed(["image", "label"])]
        return Compose([*steps, *([] if values is None else [LabelValuesd("label", values)])])

    records = [{"image": "nowhere.nii.gz", "label": "nowhere.nii.gz"}]
    with pytest.raises(ValueError, match=f"^{message}"):
        cached_volumes(records, preprocessing(), tmp_path / "cache", num_classes)
    with pytest.raises(ValueError, match=f"^{message}"):
        VolumeDataset(records, preprocessing(), 1, num_classes)
    assert not (tmp_path / "cache").exists()


def test_outliers_and_few_values_are_remarked() -> None:
    rng = np.random.default_rng(0)
    body = rng.integers(100, 160, (1, 20, 20, 20)).astype(np.float32)
    assert remarks(body, few_values=False) == []
    body[0, 3, 4, 5] = 32767
    (found,) = remarks((body - 100) / 32667, few_values=False)
    assert re.match(r"has outliers: 99\.8 % of its voxels lie within 0\.18 % of the range", found)
    (found,) = remarks((body > 130).astype(np.float32), few_values=True)
    assert found.startswith("looks like a label map")
    assert remarks(np.zeros((2, 2)), few_values=False) == []


def test_a_label_that_is_a_little_off_is_its_class(tmp_path: Path) -> None:
    """Some programs store scaled labels: truncated, .9999999 would become background."""
    stored = np.array([0, 1, 0.9999999, 1.0000001, 2.0001, 1.5], np.float32).reshape(1, 6, 1)
    for values in (None, [0, 1, 2]):
        classes = LabelValuesd("label", values)({"label": torch.from_numpy(stored[:, :5])})["label"]
        assert classes.flatten().tolist() == [0, 1, 1, 1, 2]
    with pytest.raises(ValueError, match=r"label values must be 0, 1, 2, found 1\.5\."):
        LabelValuesd("label", values)({"label": torch.from_numpy(stored)})
    with pytest.raises(ValueError, match=r"x: label values must be 0\.\.2, found 1\.00199997\."):
        check_classes(np.float32([0, 1.002]), "x", 3)


@pytest.mark.parametrize(
    ("array", "few"),
    [
        (np.eye(9), True),
        (np.arange(27).reshape(3, 3, 3), False),
        (np.eye(9) / 2, False),
        (np.zeros((5, 5, 5)), False),
        (np.random.default_rng(0).normal(size=(9, 9, 9)), False),
    ],
)
def test_few_whole_values_are_noticed_at_loading(tmp_path: Path, array: np.ndarray, few: bool) -> None:
    nib.save(nib.Nifti1Image(array.astype(np.float32), np.eye(4)), tmp_path / "x.nii")
    assert load(tmp_path / "x.nii").meta["few_values"] is few


def test_training_names_what_is_odd_every_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    body = rng.integers(100, 160, (20, 20, 20)).astype(np.float32)
    records = [{"image": str(tmp_path / f"{name}.nii")} for name in ("sound", "spark", "map")]
    spark = body.copy()
    spark[4, 4, 4] = 32767
    for record, array in zip(records, (body, spark, body > 130), strict=True):
        nib.save(nib.Nifti1Image(array.astype(np.int16), np.eye(4)), record["image"])
    steps = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image")])
    for _ in range(2):
        caplog.clear()
        cached_volumes(records, steps, tmp_path / "cache", num_classes=2)
        assert [line.split()[:2] for line in caplog.messages if "nii" in line] == [
            [records[1]["image"], "has"],
            [records[2]["image"], "looks"],
        ]
