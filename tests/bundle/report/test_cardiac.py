"""Volumes, ejection fractions and agreement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bundle.report.cardiac import agreement, ejections, left_ventricle, volumes
from tests.bundle.report.common import make_case


def test_agreement_is_bland_and_altmans() -> None:
    reference, measured = np.array([10.0, 20.0, 30.0]), np.array([12.0, 19.0, 35.0])
    found = agreement(reference, measured)
    # differences 2, -1, 5: mean 2, sample standard deviation 3
    assert found.bias == pytest.approx(2)
    assert found.limits == pytest.approx((2 - 1.96 * 3, 2 + 1.96 * 3))
    assert found.correlation == pytest.approx(np.corrcoef(reference, measured)[0, 1])
    assert found.count == 3
    assert np.isnan(agreement(reference, np.full(3, 7.0)).correlation)


def test_volumes_are_voxels_times_their_size() -> None:
    labeled, predicted = volumes([make_case([9, 100], [9, 50]), make_case([9, 0], [9, 25], spacing=(1, 1, 1))], 1)
    assert labeled.tolist() == pytest.approx([100 * 40 / 1000, 0])
    assert predicted.tolist() == pytest.approx([50 * 40 / 1000, 0.025])


@pytest.mark.parametrize(
    ("names", "number"),
    [(["RV", "Myo", "LV"], 3), (["Left ventricle", "x"], 1), (["prostate"], None), (["LV", "lv"], None)],
)
def test_left_ventricle_goes_by_its_name(names: list[str], number: int | None) -> None:
    assert left_ventricle(names) == number


def test_ejection_fraction_is_of_the_larger_ventricle(tmp_path: Path) -> None:
    cases = [
        make_case([0, 40], [0, 45], patient="p", name="first"),
        make_case([0, 100], [0, 90], patient="p", name="second"),
        make_case([0, 100], [0, 90], patient="alone"),
        make_case([0, 100], [0, 0], patient="lost"),
        make_case([0, 50], [0, 0], patient="lost"),
    ]
    one, lost = ejections(cases, 1)
    assert (one.patient, one.diastole, one.systole) == ("p", 1, 0)
    assert (one.labeled, one.predicted) == pytest.approx((60, 50))
    assert lost.labeled == pytest.approx(50)
    assert np.isnan(lost.predicted)


@pytest.mark.parametrize(
    ("info", "first"), [("ED: 12\nES: 1\n", 1), ("ED: 1\nES: 12\n", 0), ("ED: 3\nES: 12\n", 0), ("ED 1", 0)]
)
def test_phases_are_those_that_the_patients_file_names(tmp_path: Path, info: str, first: int) -> None:
    (tmp_path / "Info.cfg").write_text(info)
    files = [str(tmp_path / f"patient001_frame{frame}.nii.gz") for frame in ("01", "12")]
    cases = [make_case([0, n], [0, n], file=file) for n, file in zip((100, 50), files, strict=True)]
    (found,) = ejections(cases, 1)
    assert found.diastole == first
    # missing frames or an invalid file: the larger ventricle decides
    assert found.source == (
        "Info.cfg" if info in ("ED: 12\nES: 1\n", "ED: 1\nES: 12\n") else "the larger labelled ventricle"
    )
