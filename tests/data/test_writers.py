from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from monai.data import MetaTensor

from scripts.data.readers import LoadImageVolumed
from scripts.data.writers import SaveImageVolumed

SHAPE = (6, 5, 4)
CORNERS = ((0, 0, 0), (5, 0, 0), (0, 4, 0), (0, 0, 3))


def oblique(spacing: tuple[float, ...] = (0.7, 1.3, 3.6), handed: float = 1.0) -> np.ndarray:
    """An affine with rotated axes, in RAS mm."""
    affine = np.eye(4)
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    rotation[:, 0] *= handed * np.sign(np.linalg.det(rotation))
    affine[:3, :3] = rotation * spacing
    affine[:3, 3] = [10.125, -33.3, 77.7]
    return affine


def label_map(shape: tuple[int, ...] = SHAPE, affine: np.ndarray | None = None, name: str = "case") -> MetaTensor:
    values = np.random.default_rng(0).integers(0, 2, (1, *shape)).astype(np.float32)
    affine = oblique() if affine is None else affine
    meta = {"original_affine": affine, "filename_or_obj": f"/in/{name}.mha", "spatial_shape": np.array(shape)}
    return MetaTensor(torch.from_numpy(values), meta={**meta, "affine": torch.from_numpy(affine)})


def save(item: MetaTensor, folder: Path, suffix: str, **options: Any) -> Path:
    options = {"output_dtype": np.uint8, **options}
    saver = SaveImageVolumed("pred", suffix, output_dir=str(folder), output_postfix="seg", print_log=False, **options)
    saver({"pred": item})
    return folder / f"case_seg{suffix}"


def points(path: Path) -> np.ndarray:
    """LPS mm of the corners by SimpleITK, an independent reader of both formats."""
    image = sitk.ReadImage(str(path))
    return np.array([image.TransformIndexToPhysicalPoint(corner) for corner in CORNERS])


@pytest.mark.parametrize("handed", [1.0, -1.0])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd"])
def test_grid_is_the_images(tmp_path: Path, suffix: str, handed: float) -> None:
    item = label_map(affine=oblique(handed=handed))
    path = save(item, tmp_path, suffix)
    expected = nib.affines.apply_affine(oblique(handed=handed), CORNERS) * [-1, -1, 1]  # RAS -> LPS
    np.testing.assert_allclose(points(path), expected, atol=1e-5 if "nii" in suffix else 1e-12)
    stored = sitk.ReadImage(str(path))
    assert stored.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stored).transpose(2, 1, 0), item[0])


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".mhd"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    item = label_map()
    back = LoadImageVolumed("image")({"image": str(save(item, tmp_path, suffix))})["image"]
    np.testing.assert_array_equal(back, item[0])
    np.testing.assert_allclose(back.affine, oblique(), atol=1e-5 if "nii" in suffix else 1e-12)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".mhd"])
def test_single_slice_stays_a_volume(tmp_path: Path, suffix: str) -> None:
    path = save(label_map((6, 5, 1)), tmp_path, suffix)
    assert (nib.load(path).shape if "nii" in suffix else sitk.ReadImage(str(path)).GetSize()) == (6, 5, 1)


@pytest.mark.parametrize("suffix", [".nii.gz", ".mha", ".mhd"])
def test_probabilities_keep_their_channels(tmp_path: Path, suffix: str) -> None:
    item = label_map()
    item = MetaTensor(torch.rand(3, *SHAPE), meta=item.meta)
    path = save(item, tmp_path, suffix, output_dtype=np.float32)
    back = LoadImageVolumed("image")({"image": str(path)})["image"]
    assert back.dtype == torch.float32
    np.testing.assert_array_equal(np.moveaxis(np.asarray(back), -1, 0), item)


def test_header_names_the_voxels_beside_it(tmp_path: Path) -> None:
    first, second = label_map(), label_map(affine=np.eye(4))
    save(first, tmp_path, ".mhd")
    path = save(second, tmp_path, ".mhd")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["case_seg.mhd", "case_seg.raw"]
    assert path.read_text().splitlines()[-1] == "ElementDataFile = case_seg.raw"
    np.testing.assert_array_equal(points(path)[0], [0, 0, 0])


def test_mask_of_a_photograph(tmp_path: Path) -> None:
    # a photograph of 6 columns and 5 rows, as the reader gives it
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 6), np.uint8)), str(tmp_path / "photo.png"))
    photo = LoadImageVolumed("image")({"image": str(tmp_path / "photo.png")})["image"]
    mask = (torch.arange(5) >= 3).float().expand(6, 5)[None, ..., None]  # the lowest two rows
    item = MetaTensor(mask, meta={**photo.meta, "filename_or_obj": "case.png"})
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(save(item, tmp_path, ".png", label_values=[0, 255]))))
    assert stored.dtype == np.uint8
    assert stored.tolist() == [[0] * 6] * 3 + [[255] * 6] * 2


def test_labels_are_written_as_the_data_set_stores_them(tmp_path: Path) -> None:
    item = label_map()
    stored = sitk.ReadImage(str(save(item, tmp_path, ".mha", label_values=[0, 600])))
    assert stored.GetPixelID() == sitk.sitkUInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(stored).transpose(2, 1, 0), 600 * np.asarray(item[0]))


def test_png_holds_no_volume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^/in/case\.mha: PNG does not support 4 slices"):
        save(label_map(), tmp_path, ".png")
    assert not list(tmp_path.iterdir())


def test_unknown_suffix_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"output_ext: expected one of \.nii\.gz, .*found '\.jpg'"):
        SaveImageVolumed("pred", ".jpg")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".png"])
def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    first, second = (label_map((64, 64, 1), np.diag([spacing, 1, 1, 1])) for spacing in (1, 2))
    save(first, tmp_path, suffix)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))  # limit of the file size
    try:
        with pytest.raises(ValueError, match=rf"^{tmp_path}/case_seg{suffix} cannot be written: ") as error:
            save(second, tmp_path, suffix)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert "\n" not in str(error.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_png_of_more_than_8_bits_is_refused(tmp_path: Path) -> None:
    item = label_map((6, 5, 1))
    with pytest.raises(ValueError, match=r"case_seg\.png cannot be written: PNG supports .* 8 bits, found uint16"):
        save(item, tmp_path, ".png", label_values=[0, 600])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["", "sub/.."])
def test_maps_never_lie_among_the_images(tmp_path: Path, below: str) -> None:
    """NAME_seg may be an existing label there, and would be used as one in the next training."""
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="is the folder of the images"):
        SaveImageVolumed("pred", output_dir=str(tmp_path / below), data_root_dir=str(tmp_path))
    SaveImageVolumed("pred", output_dir=str(tmp_path / "sub"), data_root_dir=str(tmp_path))


@pytest.mark.parametrize("source", ["case.NII.GZ", "case.Nii", "case.MHA"])
def test_maps_of_files_with_suffixes_in_capitals(tmp_path: Path, source: str) -> None:
    item = label_map()
    item.meta["filename_or_obj"] = f"/in/{source}"
    save(item, tmp_path, ".nii.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["case_seg.nii.gz"]
