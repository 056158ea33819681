from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Resized

from scripts.data import SemiSupervisedLoader, SliceDataset

KEYS = ("image", "label")
LOAD = Compose(
    [LoadImaged(KEYS, image_only=True, allow_missing_keys=True), EnsureChannelFirstd(KEYS, allow_missing_keys=True)]
)


def _dataset(folder: Path, labeled: list[int], unlabeled: list[int]) -> SliceDataset:
    """Volumes with these numbers of slices; every pixel of a slice is the slice's index in the data set."""
    data: list[dict[str, Any]] = []
    start = 0
    for i, (n, has_label) in enumerate([(n, True) for n in labeled] + [(n, False) for n in unlabeled]):
        array = np.broadcast_to(np.arange(start, start + n, dtype=np.float32), (4, 5, n))
        start += n
        record = {"image": str(folder / f"{i}.nii")}
        nib.save(nib.Nifti1Image(array, np.eye(4)), record["image"])
        if has_label:
            record["label"] = str(folder / f"{i}_gt.nii")
            nib.save(nib.Nifti1Image((array % 3).astype(np.uint8), np.eye(4)), record["label"])
        data.append(record)
    return SliceDataset(data, LOAD, folder / "cache", num_classes=3)


def _indices(batch: torch.Tensor) -> list[int]:
    return [int(v) for v in batch[:, 0, 0, 0]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SliceDataset:
    return _dataset(tmp_path_factory.mktemp("slices"), labeled=[3, 2], unlabeled=[6, 7])


def test_slices(dataset: SliceDataset) -> None:
    assert len(dataset) == 18
    assert len(dataset.data) == 4
    assert dataset.labeled.tolist() == list(range(5))
    assert dataset.unlabeled.tolist() == list(range(5, 18))
    for i in range(18):
        item = dataset[i]
        assert set(item) == ({"image", "label"} if i < 5 else {"image"})
        assert item["image"].equal(torch.full((1, 4, 5), float(i)))
        if i < 5:
            assert item["label"].equal(torch.full((1, 4, 5), i % 3, dtype=torch.uint8))
    dataset[0]["image"].zero_()  # a copy
    assert dataset[1]["image"].equal(torch.full((1, 4, 5), 1.0))


def test_batches(dataset: SliceDataset) -> None:
    batch = next(iter(SemiSupervisedLoader(dataset, 4, seed=0)))
    assert {k: (tuple(v.shape), v.dtype) for k, v in batch.items()} == {
        "image": ((4, 1, 4, 5), torch.float32),
        "label": ((4, 1, 4, 5), torch.uint8),
        "unlabeled": ((4, 1, 4, 5), torch.float32),
    }
    assert type(batch["image"]) is torch.Tensor
    assert batch["label"].equal((batch["image"] % 3).to(torch.uint8))


@pytest.mark.parametrize("size", [1, 3, 4, 8, 30])
def test_every_slice_once_per_pass(dataset: SliceDataset, size: int) -> None:
    loader = SemiSupervisedLoader(dataset, size, seed=1)
    assert len(loader) == -(-13 // size)
    batches = list(itertools.islice(loader, 70))
    for key, slices in (("image", range(5)), ("unlabeled", range(5, 18))):
        stream = [i for batch in batches for i in _indices(batch[key])]
        passes = [stream[k : k + len(slices)] for k in range(0, len(stream) - len(slices) + 1, len(slices))]
        assert len(passes) >= 5
        assert all(sorted(p) == list(slices) for p in passes)
        assert len({tuple(p) for p in passes}) > 1, "each pass has its own order"


def test_resumption_is_exact(dataset: SliceDataset) -> None:
    def stream(loader: SemiSupervisedLoader, n: int) -> list[tuple[list[int], list[int]]]:
        return [(_indices(b["image"]), _indices(b["unlabeled"])) for b in itertools.islice(loader, n)]

    whole = stream(SemiSupervisedLoader(dataset, 4, seed=2), 20)
    first = SemiSupervisedLoader(dataset, 4, seed=2)
    assert stream(first, 7) == whole[:7]
    assert first.iteration == 7
    assert stream(first, 3) == whole[7:10], "a new iterator goes on"
    second = SemiSupervisedLoader(dataset, 4, seed=2)
    second.iteration = 10
    assert stream(second, 10) == whole[10:]
    assert stream(SemiSupervisedLoader(dataset, 4, seed=3), 20) != whole


def test_ranks_share_the_global_batch(dataset: SliceDataset) -> None:
    whole = SemiSupervisedLoader(dataset, 4, seed=5)
    ranks = [SemiSupervisedLoader(dataset, 2, 5, rank=r, world_size=2) for r in range(2)]
    assert len(whole) == len(ranks[0]) == 4
    for iteration in range(12):
        expected, parts = whole.batch(iteration), [loader.batch(iteration) for loader in ranks]
        for key, value in expected.items():
            assert torch.cat([part[key] for part in parts]).equal(value)
    # within a pass no slice is seen twice: the ranks are disjoint
    assert len(set(_indices(torch.cat([loader.batch(0)["unlabeled"] for loader in ranks])))) == 4


def test_all_labelled(tmp_path: Path) -> None:
    loader = SemiSupervisedLoader(_dataset(tmp_path, [3, 4], []), 2, seed=0)
    assert len(loader) == 4
    assert set(next(iter(loader))) == {"image", "label"}


@pytest.mark.parametrize(
    ("name", "value", "lowest"), [("batch_size", 0, 1), ("batch_size", 2.5, 1), ("seed", -1, 0), ("seed", None, 0)]
)
def test_batch_sizes_and_seeds_that_are_none_are_named(
    dataset: SliceDataset, name: str, value: Any, lowest: int
) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a whole number of at least {lowest}, found {value}"):
        SemiSupervisedLoader(dataset, **{"batch_size": 4, "seed": 0, name: value})


def test_no_label_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none of the 3 training slices has a label"):
        SemiSupervisedLoader(_dataset(tmp_path, [], [3]), 2, seed=0)
    with pytest.raises(ValueError, match="none of the 0"):
        SemiSupervisedLoader(SliceDataset([], LOAD, tmp_path / "cache", 3), 2, seed=0)


def test_unlike_sizes_are_named(tmp_path: Path) -> None:
    _dataset(tmp_path, [2], [2])
    nib.save(nib.Nifti1Image(np.zeros((7, 5, 2), np.float32), np.eye(4)), tmp_path / "1.nii")
    data = [{"image": str(tmp_path / "0.nii")}, {"image": str(tmp_path / "1.nii")}]
    with pytest.raises(ValueError, match=r"1\.nii: .*\[1, 7, 5\].*0\.nii are \[1, 4, 5\]"):
        SliceDataset(data, LOAD, tmp_path / "cache", 3)
    resize = Resized(KEYS, (8, 8, -1), mode=("trilinear", "nearest"), allow_missing_keys=True)
    resized = SliceDataset(data, Compose([LOAD, resize]), tmp_path / "cache", 3)
    assert resized[3]["image"].shape == (1, 8, 8)
