from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    MapTransform,
    Orientationd,
    RandFlipd,
    Resized,
    ScaleIntensityd,
)
from PIL import Image

from scripts.data import ThroughPlaneLastd, cached_volumes
from scripts.data.cache import _map

KEYS = ("image", "label")
AFFINE = np.diag([-1.5, -1.5, 8.0, 1.0])
ROOT = Path(__file__).resolve().parents[2]


class Counting(MapTransform):
    """Counts the preprocessed records."""

    calls = 0

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        type(self).calls += 1
        return data


def _preprocessing(size: int = 12, counting: bool = True) -> Compose:
    return Compose(
        [
            LoadImaged(KEYS, image_only=True, allow_missing_keys=True),
            EnsureChannelFirstd(KEYS, allow_missing_keys=True),
            Orientationd(KEYS, axcodes="LPS", labels=None, allow_missing_keys=True),
            ThroughPlaneLastd(KEYS, allow_missing_keys=True),
            ScaleIntensityd("image"),
            Resized(KEYS, (size, size, -1), mode=("trilinear", "nearest"), allow_missing_keys=True),
            *([Counting(KEYS, allow_missing_keys=True)] if counting else []),
        ]
    )


def _write(folder: Path, name: str, array: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    path = folder / f"{name}.nii.gz"
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


@pytest.fixture
def records(tmp_path: Path) -> list[dict[str, str]]:
    """A labelled and an unlabelled volume, 10 x 9 x 4."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 500, (10, 9, 4)).astype(np.int16)
    label = rng.integers(0, 4, (10, 9, 4)).astype(np.uint8)
    return [
        {"image": _write(tmp_path, "a", image), "label": _write(tmp_path, "a_gt", label)},
        {"image": _write(tmp_path, "b", image[::-1]), "case": "b"},
    ]


def test_arrays_are_the_preprocessed_slices(records: list[dict[str, str]], tmp_path: Path) -> None:
    volumes = cached_volumes(records, _preprocessing(), tmp_path / "cache", 4)
    for volume, record in zip(volumes, records, strict=True):
        item = _preprocessing()(dict(record))
        assert volume.record == record
        assert volume.shape == volume.image.shape == (4, 1, 12, 12)
        assert volume.image.dtype == np.float32
        assert isinstance(volume.image, np.memmap)
        assert not volume.image.flags.writeable
        for k in range(4):
            np.testing.assert_array_equal(volume.image[k], item["image"][..., k])
        assert volume.image.min() >= 0
        assert volume.image.max() >= 0.9
    label = volumes[0].label
    assert label is not None
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.moveaxis(np.asarray(_preprocessing()(dict(records[0]))["label"][0]), -1, 0))
    assert volumes[1].label is None


def test_second_start_preprocesses_nothing(
    records: list[dict[str, str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preprocessing, cache = _preprocessing(), tmp_path / "cache"

    def passed(data: list[dict[str, str]], transform: Compose = preprocessing, num_classes: int = 4) -> int:
        before = Counting.calls
        cached_volumes(data, transform, cache, num_classes)
        return Counting.calls - before

    with caplog.at_level(logging.INFO, logger="scripts.data.cache"):
        assert passed(records) == 2
    assert f"preprocessing 2 volumes -> {cache}" in caplog.text
    assert passed(records) == 0, "the same transforms, used before"
    assert passed(records, _preprocessing()) == 0, "equal transforms"
    os.rename(records[1]["image"], tmp_path / "renamed.nii.gz")
    records[1]["image"] = str(tmp_path / "renamed.nii.gz")
    assert passed(records) == 0, "content counts, not names"

    assert passed(records, _preprocessing(size=11)) == 2, "other settings"
    assert passed(records, num_classes=5) == 2
    assert passed([{"image": records[0]["image"]}]) == 1, "without its label"
    _write(tmp_path, "a_gt", np.zeros((10, 9, 4), np.uint8))
    assert passed(records) == 1, "other content under the same name"
    next(cache.glob("*.image.npy")).unlink()
    assert not list(cache.glob(".*")), "nothing temporary stays"


def test_key_is_the_same_in_another_process(records: list[dict[str, str]], tmp_path: Path) -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:3]\n"
        "from test_cache import _preprocessing, cached_volumes\n"
        "cached_volumes([{'image': sys.argv[3]}], _preprocessing(counting=False), sys.argv[4], 4)"
    )
    arguments = [str(ROOT), str(Path(__file__).parent), records[1]["image"], str(tmp_path / "child")]
    environment = {**os.environ, "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True)
    preprocessing = _preprocessing(counting=False)
    preprocessing(dict(records[0]))  # used before
    cached_volumes(records[1:], preprocessing, tmp_path / "parent", 4)
    keys = [[path.name for path in (tmp_path / name).iterdir()] for name in ("child", "parent")]
    assert len(keys[0]) == 1
    assert keys[0] == keys[1]


def test_voxel_file_of_a_metaimage_counts(tmp_path: Path) -> None:
    from scripts.data.cache import _stem

    fields = "NDims = 3\nDimSize = 3 1 1\nElementType = MET_UCHAR\n"
    for name, files in (("a.mhd", "a.raw"), ("a.mha", "a.raw"), ("b.mhd", "LIST\na.raw"), ("c.mha", "a%d.raw 1 1 1")):
        (tmp_path / name).write_text(f"{fields}ElementDataFile = {files}\n")
        stems = set()
        for content in (b"one", b"two", b"one"):
            for voxels in ("a.raw", "a1.raw"):
                (tmp_path / voxels).write_bytes(content)
            stems.add(_stem({"image": str(tmp_path / name)}, tmp_path, b""))
        assert len(stems) == 2, name


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-40] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("kind", ["image", "label"])
@pytest.mark.parametrize("damage", [cut, flip, lambda file: file.write_bytes(b""), lambda file: file.unlink()])
def test_a_damaged_entry_is_made_anew(
    records: list[dict[str, str]], tmp_path: Path, kind: str, damage: Callable[[Path], Any], caplog: Any
) -> None:
    def arrays() -> list[np.ndarray]:
        volumes = cached_volumes(records[:1], _preprocessing(counting=False), tmp_path / "cache", 4)
        return [np.array(volumes[0].image), np.array(volumes[0].label)]

    first = arrays()
    (file,) = (tmp_path / "cache").glob(f"*.{kind}.npy")
    damage(file)
    _map.cache_clear()
    second = arrays()
    assert all(np.array_equal(one, other) for one, other in zip(first, second, strict=True))
    assert (f"{file}: a damaged file of the cache" in caplog.text) == (file.name in caplog.text)
    caplog.clear()
    arrays()
    assert "damaged" not in caplog.text


def test_few_open_files_are_enough_for_many_volumes(tmp_path: Path) -> None:
    """macOS allows a process 256 at first."""
    code = """
import resource, sys
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
from pathlib import Path
import numpy as np
from scripts.data.cache import Volume, _save
volumes = []
for number in range(300):
    file = Path(sys.argv[1], f"{number}.npy")
    _save(file, np.full((1, 1, 4, 4), number, np.float32))
    volumes.append(Volume({}, file, file, (1, 1, 4, 4)))
for _ in range(2):
    assert [int(volume.image[0, 0, 0, 0]) for volume in volumes] == list(range(300))
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)


def _good() -> np.ndarray:
    return np.arange(10 * 9 * 4, dtype=np.float32).reshape(10, 9, 4)


def _with(value: float, dtype: Any = np.float32) -> np.ndarray:
    array = (_good() % 2).astype(dtype)
    array[4:6, 4:6] = value
    return array


FAULTS = [
    ("NaN", _with(np.nan), _with(1), r"a\.nii\.gz: the image has NaN"),
    ("infinite", _with(np.inf), _with(1), r"a\.nii\.gz: the image has NaN or infinite"),
    ("class", _good(), _with(4), r"a_gt\.nii\.gz: label values must be 0\.\.3, found 4"),
    ("negative", _good(), _with(-1, np.int16), r"a_gt\.nii\.gz: label values must be 0\.\.3, found -1"),
    ("fraction", _good(), _with(0.5), r"a_gt\.nii\.gz: label values must be 0\.\.3, found 0\.5"),
    ("shape", _good(), _with(1)[:, :, :3], r"a_gt\.nii\.gz: label shape \(10, 9, 3\) .* image's shape \(10, 9, 4\)"),
    ("plane", _good(), _with(1)[:8], r"a_gt\.nii\.gz: label shape \(8, 9, 4\)"),
]


@pytest.mark.parametrize(("image", "label", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_faults_name_the_file(tmp_path: Path, image: np.ndarray, label: np.ndarray, message: str) -> None:
    record = {"image": _write(tmp_path, "a", image), "label": _write(tmp_path, "a_gt", label)}
    with pytest.raises(ValueError, match=message) as error:
        cached_volumes([record], _preprocessing(), tmp_path / "cache", 4)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "cache").glob("*.image.npy"))


def test_label_stored_in_another_orientation(tmp_path: Path) -> None:
    record = {"image": _write(tmp_path, "a", _good()), "label": _write(tmp_path, "a_gt", _with(1), np.eye(4))}
    with pytest.raises(ValueError, match=r"a_gt\.nii\.gz: label orientation RAS is not the image's LPS"):
        cached_volumes([record], _preprocessing(), tmp_path / "cache", 4)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
@pytest.mark.parametrize("keep", [0.6, 0.0])
def test_truncated_and_unreadable_files(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"broken{suffix}"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).normal(size=(10, 9, 4)), AFFINE), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))] or b"no image")
    with pytest.raises(ValueError, match=rf"broken{re.escape(suffix)}") as error:
        cached_volumes([{"image": str(path)}], _preprocessing(), tmp_path / "cache", 4)
    assert "\n" not in str(error.value)


def test_first_faults_are_listed(tmp_path: Path) -> None:
    good = _write(tmp_path, "good", _good())
    bad = [{"image": _write(tmp_path, f"bad{i}", _with(np.nan + i))} for i in range(7)]
    bad[3] = {"image": str(tmp_path / "missing.nii.gz")}
    with pytest.raises(ValueError, match=r"bad\d") as error:
        cached_volumes([{"image": good}, *bad], _preprocessing(), tmp_path / "cache", 4)
    lines = str(error.value).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "... and 2 more"
    assert sum("missing.nii.gz" in line for line in lines) == 1


def test_constant_image_is_zero(tmp_path: Path) -> None:
    path = _write(tmp_path, "flat", np.full((10, 9, 4), 7, np.int16))
    assert not cached_volumes([{"image": path}], _preprocessing(), tmp_path / "cache", 4)[0].image.any()


def test_photographs_are_one_slice(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray((pixels[..., 0] > 99).astype(np.uint8)).save(tmp_path / "a_mask.png")
    load = Compose([LoadImaged(KEYS, image_only=True), EnsureChannelFirstd(KEYS), ThroughPlaneLastd(KEYS)])
    record = {"image": str(tmp_path / "a.png"), "label": str(tmp_path / "a_mask.png")}
    volume = cached_volumes([record], load, tmp_path / "cache", 2)[0]
    # MONAI reads photographs as [C, W, H]
    np.testing.assert_array_equal(volume.image, pixels.transpose(2, 1, 0)[None])
    np.testing.assert_array_equal(volume.label, pixels[None, ..., 0].transpose(0, 2, 1) > 99)


def test_random_preprocessing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="RandFlipd"):
        cached_volumes([], Compose([RandFlipd("image")]), tmp_path, 4)


SHARED = """
import sys
from scripts.utils.processes import join_processes, rank_and_count
from tests.data.test_cache import Counting, _preprocessing
from scripts.data import cached_volumes
from pathlib import Path

folder, cache, report = map(Path, sys.argv[1:])
join_processes()
records = [{"image": str(path)} for path in sorted(folder.glob("*.nii.gz"))]
try:
    outcome = f"{[v.shape[0] for v in cached_volumes(records, _preprocessing(), cache, 4)]}"
except ValueError as error:
    outcome = f"{error}"
(report / f"{rank_and_count()[0]}.txt").write_text(f"{Counting.calls} {outcome}")
"""


def test_processes_of_a_machine_share_a_cold_cache(tmp_path: Path) -> None:
    images, report = tmp_path / "images", tmp_path / "report"
    images.mkdir()
    report.mkdir()
    for number in range(5):
        _write(images, f"i{number}", np.random.default_rng(number).random((8, 8, number + 1)).astype(np.float32))
    program = tmp_path / "program.py"
    program.write_text(SHARED)
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run() -> list[str]:
        arguments = [str(images), str(tmp_path / "cache"), str(report)]
        subprocess.run([*line, *arguments], check=True, capture_output=True, env=environment, timeout=600)
        return [(report / f"{rank}.txt").read_text() for rank in range(2)]

    assert run() == ["3 [1, 2, 3, 4, 5]", "2 [1, 2, 3, 4, 5]"]
    (images / "i1.nii.gz").write_bytes(b"broken")
    (images / "i2.nii.gz").write_bytes(b"broken too")
    first, second = run()
    assert first[2:] == second[2:], "each process knows the faults of all"
    assert [f"i{number}.nii.gz" in first for number in range(5)] == [False, True, True, False, False]
