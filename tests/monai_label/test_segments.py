from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from scripts.monai_label.segments import ClassTerms, Segment, conform_label, listed_segments
from tests.monai_label.common import AFFINE, CLASSES, CODES, SYNONYMS, listed, save

TERMS = ClassTerms(CLASSES, SYNONYMS, CODES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("RV", 1),
        ("rv", 1),
        ("Right Ventricle", 1),
        ("heart_ventricle_right", 1),
        ("Right ventricular cavity", 1),
        ("RightVentricle", 1),
        ("Myocardium", 2),
        ("heart_myocardium", 2),
        ("LV", 3),
        ("left ventricle of heart", 3),
        ("Left cardiac ventricle", 3),
    ],
)
def test_names_that_viewers_use(name: str, expected: int) -> None:
    assert TERMS.classes([Segment(7, (name,))]) == {7: expected}


@pytest.mark.parametrize("name", ["Segment_1", "aorta", "ventricle", "left atrium", "heart", "", "rv myocardium"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"the segment '{name}' is none of RV, Myo, LV"):
        TERMS.classes([Segment(1, (name,))])


def test_a_code_counts_where_no_name_does() -> None:
    assert TERMS.classes([Segment(1, ("Segment 1", "something"), "87878005")]) == {1: 3}
    assert TERMS.classes([Segment(1, ("Segment 1", "Right ventricle"), "1")]) == {1: 1}


def test_two_segments_of_one_class_are_refused() -> None:
    with pytest.raises(ValueError, match="two segments are LV"):
        TERMS.classes([Segment(1, ("LV",)), Segment(2, ("left ventricle",))])


def test_listed_segments_count_by_their_places() -> None:
    assert listed_segments({"label_info": listed("lv", "rv")}) == [Segment(1, ("lv",)), Segment(2, ("rv",))]
    assert listed_segments({"label_info": [{"idx": 1}]}) == listed_segments({}) == []


def pair(folder: Path, dtype: type = np.uint8) -> tuple[Path, np.ndarray]:
    """An image of nine slices and a label whose first slice and last two are empty."""
    label = np.zeros((6, 5, 9), dtype)
    label[..., 1:7] = np.random.default_rng(0).integers(0, 4, (6, 5, 6))
    return save(folder / "image.nii.gz", np.zeros(label.shape, np.int16)), label


def read(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).T


@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_values_become_classes(dtype: type, tmp_path: Path) -> None:
    image, label = pair(tmp_path, dtype)
    path = save(tmp_path / "label.nii.gz", label)
    target = conform_label(image, path, {1: 3, 2: 2, 3: 1}, tmp_path / "new" / "label.nii.gz")
    np.testing.assert_array_equal(read(target), np.array([0, 3, 2, 1])[label.astype(int)])
    assert sitk.ReadImage(str(target)).GetOrigin() == sitk.ReadImage(str(image)).GetOrigin()


def test_a_label_that_needs_nothing_is_left_alone(tmp_path: Path) -> None:
    image, label = pair(tmp_path)
    path = save(tmp_path / "label.nii.gz", label)
    for classes in ({}, {1: 1, 2: 2, 3: 3}):
        assert conform_label(image, path, classes, tmp_path / "new.nii.gz") == path
    assert not (tmp_path / "new.nii.gz").exists()


def test_a_value_that_is_no_segment_is_refused(tmp_path: Path) -> None:
    image, label = pair(tmp_path)
    path = save(tmp_path / "label.nii.gz", label)
    with pytest.raises(ValueError, match=r"label\.nii\.gz: expected the values of its segments, found 3"):
        conform_label(image, path, {1: 2, 2: 1}, tmp_path / "new.nii.gz")


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_slices_that_an_archive_left_out_are_empty(flipped: bool, suffix: str, tmp_path: Path) -> None:
    image, label = pair(tmp_path)
    whole = sitk.ReadImage(str(save(tmp_path / "whole.nii.gz", label)))
    part = whole[1:, :, 1:7]
    if flipped:
        part = sitk.Flip(part, (False, False, True), False)  # the last slice first, in the same place
    sitk.WriteImage(part, str(tmp_path / f"part{suffix}"))
    target = conform_label(image, tmp_path / f"part{suffix}", {}, tmp_path / "new.nii.gz")
    expected = label.copy()
    expected[0] = 0
    np.testing.assert_array_equal(read(target), expected)


@pytest.mark.parametrize("change", ["between", "outside", "larger voxels"])
def test_other_grids_are_left_for_the_checks_to_refuse(change: str, tmp_path: Path) -> None:
    image, label = pair(tmp_path)
    affine = AFFINE.copy()
    if change == "larger voxels":
        affine[0, 0] *= 2
        label = label[::2]
    affine[2, 3] = {"between": 12.0, "outside": 32.0}.get(change, 0.0)
    path = save(tmp_path / "label.nii.gz", label[..., :7], affine)
    assert conform_label(image, path, {}, tmp_path / "new.nii.gz") == path
