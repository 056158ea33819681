from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from scripts.data import ThroughPlaneLastd, cohort_axis
from scripts.data.axis import decide_axis, slice_index
from tests.workflows import workflow

Volume = tuple[tuple[int, ...], tuple[float, ...]]
LPS = np.diag([-1.0, -1.0, 1.0])


def grid(volume: Volume, order: Sequence[int] = (0, 1, 2)) -> tuple[tuple[int, ...], np.ndarray]:
    """An LPS volume stored with another order of axes."""
    shape, spacing = volume
    affine = np.eye(4)
    affine[:3, :3] = (LPS * spacing)[:, order]
    return tuple(shape[axis] for axis in order), affine


MANY = {
    "crops of 1 mm": ([((35 + 5 * (i % 2), 47 + i, 40 - i), (1, 1, 1)) for i in range(6)], "axial"),
    "brains": ([((160, 240, 256), (1, 1, 1)), ((256, 256, 150), (1, 1, 1))], "axial"),
    "rounded": ([((64, 64, 40), (0.8, 0.8000000119, 1.0 + 3e-8 * (i % 3))) for i in range(40)], "axial"),
    "three sizes": ([((64, 64, 64), (0.1, 0.3, 0.2))], "axial"),
    "ACDC": ([((216, 256, 10), (1.4, 1.4, 10.0)), ((200, 200, 6), (1.9, 1.9, 5.0))], "axial"),
    "a coronal stack": ([((64, 12, 64), (1, 8, 1))] * 3, "coronal"),
    "thick ones decide": ([((64, 64, 64), (1, 1, 1))] * 9 + [((12, 64, 64), (4, 1, 1))], "sagittal"),
    "thin slices": ([((64, 64, 300), (0.9, 0.9, 0.6))] * 2, "axial"),
    "acquired in different planes": ([((64, 12, 64), (1, 8, 1)), ((64, 64, 12), (1, 1, 8))], "thickest"),
    "unknown spacing": ([((64, 9, 64), (1, 1, 1))] * 2, "coronal"),
    "single slices": ([((64, 1, 64), (1, 8, 1)), ((64, 64, 1), (1, 1, 8))], "axial"),
    "nothing": ([], "axial"),
}


@pytest.mark.parametrize("name", MANY)
def test_one_axis_for_the_cohort(name: str) -> None:
    volumes, expected = MANY[name]
    assert decide_axis([grid(volume) for volume in volumes]).axis == expected


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_order_in_a_file_matters_only_where_nothing_else_tells(order: Sequence[int]) -> None:
    assert decide_axis([grid(((64, 12, 64), (1, 8, 1)), order)]).axis == "coronal"
    assert decide_axis([grid(((40, 40, 40), (1, 1, 1)), order)]).axis == ("sagittal", "coronal", "axial")[order[2]]
    for axis, place in (("sagittal", 0), ("coronal", 1), ("axial", 2)):
        shape, affine = grid(((40, 50, 60), (1, 1, 1)), order)
        assert shape[slice_index(axis, shape, affine)] == (40, 50, 60)[place]
        assert order[slice_index(axis, shape, affine)] == place


def test_a_single_slice_is_one_whatever_the_plane() -> None:
    shape, affine = grid(((64, 1, 64), (1, 1, 1)))
    assert {slice_index(axis, shape, affine) for axis in ("sagittal", "coronal", "axial", "thickest")} == {1}


def test_the_axis_of_a_cohort_comes_from_all_its_headers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = []
    for i in range(5):
        records.append({"image": str(tmp_path / f"{i}.nii.gz")})
        spacing = (1, 8, 1) if i else (1, 1, 1)
        nib.save(nib.Nifti1Image(np.zeros((9, 8, 7), np.uint8), np.diag([*spacing, 1])), records[-1]["image"])
    (tmp_path / "damaged.nii.gz").write_bytes(b"no image")
    records += [{"image": str(tmp_path / "damaged.nii.gz")}, {"image": str(tmp_path / "photo.jpg")}]
    with caplog.at_level(logging.INFO):
        assert cohort_axis(records) == "coronal"
    assert "Slices are coronal: 4 of 5 volumes have thick slices in this plane." in caplog.text


def test_a_datalist_names_the_axis(tmp_path: Path) -> None:
    source = tmp_path / "list.json"
    source.write_text(json.dumps({"training": [], "slice_axis": "sagittal"}))
    assert cohort_axis([], source) == "sagittal"
    source.write_text(json.dumps({"training": []}))
    assert cohort_axis([], source) == "axial"
    source.write_text(json.dumps({"training": [], "slice_axis": 2}))
    with pytest.raises(ValueError, match=r"list\.json: slice_axis: expected one of sagittal, .* found 2"):
        cohort_axis([], source)


@pytest.mark.parametrize(
    ("files", "key"),
    [
        (["inference.json"], "preprocessing"),
        (["inference.json", "monai_label_inference.json"], "preprocessing"),
        (["train.json", "evaluate.json"], "validate#preprocessing"),
    ],
)
def test_what_uses_weights_cuts_as_their_record_says(
    trained: Callable[..., Path], phantom: Path, tmp_path: Path, files: list[str], key: str
) -> None:
    given: dict[str, Any] = {"dataset_dir": str(phantom), "output_dir": str(tmp_path), "image_size": 48}
    given["checkpoint"] = str(trained(slice_axis="coronal"))
    if files[0] == "train.json":
        given["splits"] = str(phantom / "splits.json")
    steps = workflow("infer", *files, **given).parser.get_parsed_content(key).transforms
    assert [step.axis for step in steps if isinstance(step, ThroughPlaneLastd)] == ["coronal"]


def test_real_volumes(real_data: Callable[[str], Path]) -> None:
    for name, pattern in (("acdc", "*/*_frame??.nii.gz"), ("promise12", "Case??.mhd")):
        records = [{"image": str(path)} for path in sorted(real_data(name).glob(pattern))[:20]]
        assert cohort_axis(records) == "axial", name
