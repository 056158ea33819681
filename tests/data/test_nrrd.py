from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from scripts.data import LoadImageVolumed


def save(path: Path, components: int = 1) -> np.ndarray:
    shape = (6, 5, 4) if components == 1 else (6, 5, 4, components)
    array = np.random.default_rng(0).integers(0, 99, shape).astype(np.int16)
    image = sitk.GetImageFromArray(array, isVector=components > 1)
    image.SetSpacing((1.5, 1.25, 8.0))
    image.SetOrigin((3.0, -4.0, 5.0))
    sitk.WriteImage(image, str(path), True)
    return array


@pytest.mark.parametrize("components", [1, 3])
def test_nrrd_lies_where_nifti_lies(components: int, tmp_path: Path) -> None:
    array = save(tmp_path / "x.nrrd", components)
    loaded = LoadImageVolumed("image")({"image": str(tmp_path / "x.nrrd")})["image"]
    np.testing.assert_array_equal(loaded.numpy(), array.transpose(2, 1, 0, *range(3, array.ndim)))
    save(tmp_path / "x.nii.gz")
    nifti = LoadImageVolumed("image")({"image": str(tmp_path / "x.nii.gz")})["image"]
    np.testing.assert_allclose(loaded.affine, nifti.affine, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-40], "or is damaged"),
        (lambda content: b"no image", "or is damaged"),
        (lambda content: content.replace(b"\nspace ", b"\ndata file: x.raw\nspace ", 1), "are in another file"),
    ],
    ids=["cut", "strange", "detached"],
)
def test_other_files_are_refused_in_one_line(change: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.nrrd"
    save(path)
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(Exception, match=message):
        LoadImageVolumed("image")({"image": str(path)})
