from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from scripts.data import VolumeDataset, dataset_records


def load() -> Compose:
    keys = ["image", "label"]
    return Compose([LoadImaged(keys), EnsureChannelFirstd(keys)])


@pytest.fixture
def record(phantom: Path, tmp_path: Path) -> dict[str, str]:
    """A validation record with files that may be damaged."""
    source = dataset_records("acdc", phantom, "val", phantom / "splits.json")[0]
    return {key: shutil.copy(source[key], tmp_path / Path(source[key]).name) for key in ("image", "label")}


def rewrite(path: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    file = nib.load(path)
    nib.save(nib.Nifti1Image(change(np.asarray(file.dataobj)), file.affine), path)


def test_in_memory_and_one_by_one_give_the_same(record: dict[str, str]) -> None:
    eager = VolumeDataset([record], load(), 1, 4, in_memory=True)
    lazy = VolumeDataset([record], load(), 1, 4)
    for key in ("image", "label"):
        assert np.array_equal(lazy[0][key], eager[0][key])
        assert np.array_equal(lazy[0][key].affine, eager[0][key].affine)
    assert eager[0]["label"].dtype == torch.uint8
    expected = nib.load(record["image"]).get_fdata()
    Path(record["image"]).unlink()
    assert np.array_equal(eager[0]["image"][0], expected)
    with pytest.raises(ValueError, match="cannot be read"):
        lazy[0]


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("label", lambda x: x[..., :-1], "label shape"),
        ("label", lambda x: x + np.uint8(9), "label values must be 0..3"),
        ("image", lambda x: np.full(x.shape, np.nan, np.float32), "NaN"),
        ("image", lambda x: np.stack([x, x], -1), "found 2 channels, expected 1"),
    ],
)
def test_faults_are_found_before_anything_begins(
    record: dict[str, str], key: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    rewrite(record[key], change)
    with pytest.raises(ValueError, match=message) as info:
        VolumeDataset([record], load(), 1, 4, in_memory=True)
    assert Path(record[key]).name in str(info.value)


def test_a_truncated_file_is_named(record: dict[str, str]) -> None:
    path = Path(record["label"])
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=path.name):
        VolumeDataset([record], load(), 1, 4, in_memory=True)
