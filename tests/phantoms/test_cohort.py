from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.data import dataset_records
from scripts.phantoms import make_phantom_cohort
from scripts.phantoms.cohort import MARKER

SMALL = {"patients": (2, 1, 1), "size": (48, 56), "spacing": (3.6, 4.0), "slices": (3, 4)}


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def _frames(root: Path) -> list[list[tuple[nib.Nifti1Image, nib.Nifti1Image]]]:
    """Per patient: (image, label) at end-diastole and end-systole."""
    splits = json.loads((root / "splits.json").read_text())
    records = [r for part in splits for r in dataset_records("acdc", root, part, root / "splits.json")]
    cases = sorted({r["case"] for r in records})
    return [[(nib.load(r["image"]), nib.load(r["label"])) for r in records if r["case"] == case] for case in cases]


def test_layout_and_types(phantom: Path) -> None:
    splits = json.loads((phantom / "splits.json").read_text())
    assert [len(splits[part]) for part in ("train", "val", "test")] == [6, 2, 2]
    assert sorted(chain(*splits.values())) == sorted(p.name for p in phantom.glob("patient*"))
    patients = _frames(phantom)
    assert [len(frames) for frames in patients] == [2] * 10
    for image, label in chain(*patients):
        assert image.get_data_dtype() == np.int16
        assert label.get_data_dtype() == np.uint8
        assert image.shape == label.shape
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert 8 <= image.header.get_zooms()[2] <= 10
        assert np.asarray(image.dataobj).min() >= 0
    systole = {Path(frames[1][0].get_filename()).name[-9:-7] for frames in patients}
    assert len(systole) > 1, "the frame numbers vary by patient"


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(make_phantom_cohort(tmp_path_factory.mktemp("full") / "cohort", patients=(4, 0, 0)))


def test_hearts_beat(full_size: Path) -> None:
    for diastole, systole in _frames(full_size):
        ed, es = (np.bincount(np.asarray(label.dataobj).ravel(), minlength=4) for _, label in (diastole, systole))
        assert ed.size == 4
        assert es[3] < 0.9 * ed[3], "the cavity empties"
        assert es[1] < ed[1]
        assert 0.8 < es[2] / ed[2] < 1.25, "muscle keeps about its volume"


def test_anatomy(full_size: Path) -> None:
    """In-plane, at full resolution: the cavity lies within the ring, the ring is one piece, blood outshines muscle."""
    for image, label in chain(*_frames(full_size)):
        classes, signal = np.asarray(label.dataobj), np.asarray(image.dataobj)
        assert 7 <= classes.shape[2] <= 11
        assert all(128 <= n <= 160 for n in classes.shape[:2])
        for k in range(classes.shape[2]):
            cavity, ring = classes[..., k] == 3, classes[..., k] == 2
            if cavity.any():
                rim = ndimage.binary_dilation(cavity) & ~cavity
                assert ring[rim].all()
            if ring.any():
                assert ndimage.label(ring, np.ones((3, 3)))[1] == 1
        assert np.median(signal[classes == 3]) > 1.3 * np.median(signal[classes == 2])


def test_deterministic_and_idempotent(tmp_path: Path) -> None:
    first = Path(make_phantom_cohort(tmp_path / "a", seed=3, **SMALL))
    times = {p: p.stat().st_mtime_ns for p in first.rglob("*")}
    assert make_phantom_cohort(first, seed=3, **SMALL) == str(first)
    assert {p: p.stat().st_mtime_ns for p in first.rglob("*")} == times
    again = Path(make_phantom_cohort(tmp_path / "b", seed=3, **SMALL))
    arrays = [[np.asarray(n.dataobj) for n in chain(*chain(*_frames(root)))] for root in (first, again)]
    assert all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))

    before = _files(first)
    make_phantom_cohort(first, seed=4, **SMALL)  # other parameters: replaced
    assert _files(first) != before
    next(first.glob("patient*/*_gt.nii.gz")).unlink()
    make_phantom_cohort(first, seed=4, **SMALL)  # incomplete: rewritten
    assert len(list(first.glob("patient*/*_gt.nii.gz"))) == 8
    (first / MARKER).write_bytes(b"[" * 10_000 + b"\xff")
    make_phantom_cohort(first, seed=4, **SMALL)  # damaged: made again
    assert json.loads((first / MARKER).read_text())[2] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"], "nothing temporary stays"


def test_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="not empty"):
        make_phantom_cohort(tmp_path, **SMALL)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
