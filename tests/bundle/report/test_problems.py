"""The problems in a report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import Compose, Orientationd
from PIL import Image

from bundle.report import problems
from bundle.report.cases import _facts as case_facts
from bundle.report.evaluation import MEAN, Scores
from bundle.report.problems import empty_predictions, outliers, training_ranges, unlike_training
from scripts.data import ThroughPlaneLastd
from tests.bundle.report.common import make_case


def preprocessing(axis: str) -> Compose:
    """Those steps of a preprocessing that turn a volume."""
    return Compose([Orientationd("image", axcodes="LPS", labels=None), ThroughPlaneLastd("image", axis)])


def run_with(image: Path, cache: Path, steps: Compose) -> Any:
    """A run with one training image."""
    known = {"train#dataset#data": [{"image": str(image)}], "cache_dir": str(cache), "train#preprocessing": steps}
    return SimpleNamespace(get=known.__getitem__)


def test_classes_on_one_side_only_are_named() -> None:
    cases = [make_case([9, 5, 7], [9, 5, 7]), make_case([9, 1234, 0], [9, 0, 3]), make_case([9, 0, 0], [9, 0, 0])]
    assert [(p.case, p.what) for p in empty_predictions(cases, ["RV", "LV"])] == [
        (1, "RV: nothing predicted, 1,234 voxels in the label"),
        (1, "LV: 3 voxels predicted, none in the label"),
    ]


def test_outliers_lie_below_tukeys_fence_or_far_from_the_labels_volume() -> None:
    dice = np.array([0.80, 0.82, 0.84, 0.86, 0.50])
    # quartiles .80 and .84: the fence is .80 - 1.5 * .04 = .74
    scores = Scores(list("abcde"), ["LV"], {"LV": {"dsc": dice}, MEAN: {"dsc": dice}}, {})
    predicted = [100, 150, 151, 67, 66]
    cases = [make_case([0, 100], [0, n]) for n in predicted]
    assert [(p.case, p.what) for p in outliers(cases, scores)] == [
        (4, "DSC LV 0.500 (fence 0.740)"),
        (4, "DSC mean 0.500 (fence 0.740)"),
        (2, "volume LV × 1.51"),
        (4, "volume LV × 0.66"),
    ]


def test_cases_outside_the_training_range_are_named() -> None:
    ranges = {"mean intensity": (0.1, 0.2), "field of view": (100.0, 200.0)}
    cases = [
        make_case([0], [0], intensity=(0.2, 0.1), size=(60, 80, 3)),  # 120 and 160 mm: 140
        make_case([0], [0], intensity=(0.209, 0.1), size=(100, 100, 3)),  # 200 mm, within 5 %
        make_case([0], [0], intensity=(0.3, 0.1), size=(200, 200, 3)),
        make_case([0], [0], intensity=(0.05, 0.1), spacing=None),
    ]
    assert [(p.case, p.what) for p in unlike_training(cases, ranges)] == [
        (2, "mean intensity 0.300, in training 0.100-0.200"),
        (2, "field of view 400 mm, in training 100-200"),
        (3, "mean intensity 0.050, in training 0.100-0.200"),
    ]


def test_a_channel_counts_whatever_its_unit(tmp_path: Path) -> None:
    """A diffusion map in mm2/s next to a weighted image, in the training and among the cases."""
    voxels = np.random.default_rng(0).integers(0, 900, (6, 5, 3, 2)).astype(np.float32)
    ranges, facts = [], []
    steps = preprocessing("thickest")
    for name, unit in (("a", [1, 1]), ("b", [1, 1e-6])):
        image = voxels * np.float32(unit)
        nib.save(nib.Nifti1Image(image, np.diag([2.0, 2, 8, 1])), tmp_path / f"{name}.nii")
        ranges.append(training_ranges(run_with(tmp_path / f"{name}.nii", tmp_path, steps)))
        case = np.concatenate([np.moveaxis(image, -1, 0), np.zeros((2, 6, 5, 3))])
        facts.append(case_facts(case, np.array([2.0, 2, 8]), 2))
    assert ranges[0]["mean intensity"] == pytest.approx(ranges[1]["mean intensity"])
    assert ranges[0]["mean intensity"][0] == pytest.approx(facts[0]["intensity"][0], rel=1e-5)
    np.testing.assert_allclose(facts[1]["intensity"], facts[0]["intensity"], rtol=1e-5)
    np.testing.assert_allclose(facts[1]["image"], facts[0]["image"], atol=1)
    assert facts[0]["image"][..., 1].max() == 255


def test_what_is_kept_of_the_training_images_is_measured_anew_where_it_is_damaged(tmp_path: Path) -> None:
    nib.save(
        nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([2.0, 2, 8, 1])), tmp_path / "a.nii"
    )
    run = run_with(tmp_path / "a.nii", tmp_path / "cache", preprocessing("thickest"))
    ranges = training_ranges(run)
    (kept,) = (tmp_path / "cache" / "report").iterdir()
    for damaged in (b"", b"{", b"[]", b"\xff", b"[" * 10_000, b"{}"):
        kept.write_bytes(damaged)
        assert training_ranges(run) == ranges


def test_training_images_are_measured_in_the_plane_of_the_slices(tmp_path: Path) -> None:
    """Voxels of equal sides have no thickest one: the run's axis decides, in one cache too."""
    sides = {"sagittal": (21, 33), "coronal": (12, 33), "axial": (12, 21)}
    nib.save(nib.Nifti1Image(np.ones((12, 21, 33), np.float32), np.diag([2.0, 2, 2, 1])), tmp_path / "a.nii")
    for axis, (first, second) in sides.items():
        ranges = training_ranges(run_with(tmp_path / "a.nii", tmp_path / "cache", preprocessing(axis)))
        assert ranges["field of view"] == pytest.approx((first + second, first + second)), axis
        assert ranges["pixel"] == pytest.approx((2, 2))


def test_photographs_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    run = run_with(tmp_path / "a.png", tmp_path / "cache", preprocessing("axial"))
    ranges = training_ranges(run)
    assert list(ranges) == ["mean intensity", "spread of intensities"]

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(problems, "_facts_of_file", refuse)
    assert training_ranges(run) == ranges
