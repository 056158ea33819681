from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, Orientationd

from scripts.data import LoadImageVolumed, ThroughPlaneLastd
from scripts.data.nifti import GEOMETRY
from scripts.data.writers import SaveImageVolumed

SHAPE = (7, 6, 5)
TURN = np.linalg.qr(np.eye(3) + 0.2 * np.random.default_rng(0).normal(size=(3, 3)))[0] * [-1, -1, 1]
FLAT = np.diag([-1.0, -1.0, 1.0, 1.0])


def oblique(spacing: tuple[float, ...] = (0.7, 0.8, 5.0), shear: float = 0.0) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = TURN * spacing
    affine[0, 1] += shear
    affine[:3, 3] = 10, -20, 30
    return affine


def write(path: Path, kind: Any = nib.Nifti1Image, shape: tuple[int, ...] = SHAPE, **fields: Any) -> Path:
    """A NIfTI whose header has exactly these fields; ``sform`` and ``qform`` are an affine and its code."""
    header = kind.header_class(endianness=fields.pop("endianness", "<"))
    header.set_data_shape(shape)
    header.set_data_dtype(np.int16)
    for name in ("qform", "sform"):
        if name in fields:
            affine, code = fields.pop(name)
            getattr(header, f"set_{name}")(affine, code)
    for name, value in fields.items():
        if name == "pixdim":
            header["pixdim"][1:4] = value
        else:
            header[name] = value
    header.set_slope_inter(1, 0)
    header["vox_offset"] = 544 if kind is nib.Nifti2Image else 352
    voxels = np.random.default_rng(1).integers(0, 9, shape).astype(header.get_data_dtype())
    gap = bytes(int(header["vox_offset"]) - len(header.binaryblock))
    path.write_bytes(header.binaryblock + gap + voxels.tobytes(order="F"))
    return path


HEADERS: dict[str, dict[str, Any]] = {
    "both": {"sform": (oblique(), 1), "qform": (oblique(), 1)},
    "ACDC's": {"sform": (FLAT, 2), "qform_code": 0, "pixdim": (1.37, 1.37, 10)},
    "sform, pixdim left at 1": {"sform": (oblique(), 1), "qform_code": 0, "pixdim": (1, 1, 1)},
    "undeclared qform": {"qform": (oblique(), 0), "sform": (FLAT * [1.5, 1.5, 8, 1], 2), "pixdim": (1.5, 1.5, 8)},
    "none declared": {"sform_code": 0, "qform_code": 0, "pixdim": (1.5, 1.6, 10)},
    "none declared, both there": {"sform": (oblique(), 0), "qform": (oblique(), 0)},
    "micron": {"sform": (oblique((700, 800, 5000)), 1), "qform": (oblique((700, 800, 5000)), 1), "xyzt_units": 3},
    "metre": {"sform": (oblique((0.1, 0.2, 0.3)), 1), "qform": (oblique((0.1, 0.2, 0.3)), 1), "xyzt_units": 1},
    "mm and seconds": {"sform": (oblique(), 1), "qform": (oblique(), 1), "xyzt_units": 10},
    "disagreeing": {"qform": (FLAT * [2, 2, 3, 1], 1), "sform": (oblique((2, 2, 3)), 2), "pixdim": (2, 2, 3)},
    "qform alone": {"qform": (oblique(), 1)},
    "mirrored": {"qform": (oblique() * [-1, 1, 1, 1], 1), "sform": (oblique() * [-1, 1, 1, 1], 1)},
    "big-endian": {"sform": (oblique(), 1), "qform": (oblique(), 1), "endianness": ">"},
    "one slice": {"sform": (oblique(), 1), "qform": (oblique(), 1), "shape": (7, 6, 1)},
}


def at(image: sitk.Image) -> np.ndarray:
    """RAS mm of some voxels."""
    points = [image.TransformIndexToPhysicalPoint(index) for index in ((0, 0, 0), (6, 0, 0), (0, 5, 0), (6, 5, 4))]
    return np.array(points) * [-1, -1, 1]


def load(path: Path) -> MetaTensor:
    return LoadImageVolumed("image")({"image": str(path)})["image"]


def mapped(image: Path, folder: Path) -> Path:
    """The label map of an image after inference's steps: loaded, reoriented, batched, inverted and written."""
    steps = Compose(
        [
            LoadImageVolumed("image"),
            EnsureChannelFirstd("image"),
            Orientationd("image", axcodes="LPS", labels=None),
            ThroughPlaneLastd("image"),
        ]
    )
    (batch,) = DataLoader(Dataset([{"image": str(image)}], steps), batch_size=1)
    (item,) = decollate_batch({**batch, "pred": (batch["image"] > 4).float()})
    item = Invertd("pred", steps, orig_keys="image")(item)
    save = SaveImageVolumed(
        "pred", output_dir=str(folder), output_postfix="seg", output_dtype=np.uint8, print_log=False
    )
    save(item)
    return folder / image.name.replace(".nii", "_seg.nii.gz")


@pytest.mark.parametrize("name", HEADERS)
def test_an_image_lies_where_itk_reads_it(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "x.nii", **HEADERS[name])
    found = load(path)
    expected = at(sitk.ReadImage(str(path)))
    index = ((0, 0, 0), (6, 0, 0), (0, 5, 0), (6, 5, 4))
    np.testing.assert_allclose(nib.affines.apply_affine(np.asarray(found.affine), index), expected, atol=1e-4)
    np.testing.assert_allclose(found.pixdim, sitk.ReadImage(str(path)).GetSpacing(), rtol=1e-6)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("name", [*HEADERS, "sheared", "flat"])
def test_a_map_lies_where_its_image_lies_for_every_program(tmp_path: Path, name: str, kind: Any) -> None:
    both = {"sform": (oblique(shear=0.3), 1), "qform": (oblique(), 1)}
    alone = {"sform": (oblique(shear=0.3), 1), "pixdim": (0.7, 0.9, 5)}  # ITK reads none of it
    flat = {**HEADERS["both"], "shape": (7, 6)}
    header = {**HEADERS, "sheared": both if kind is nib.Nifti1Image else alone, "flat": flat}[name]
    image = write(tmp_path / "x.nii", kind, **header)
    result = mapped(image, tmp_path / "out")
    one, other = nib.load(image), nib.load(result)
    for field in GEOMETRY:
        np.testing.assert_array_equal(np.asarray(other.header[field]), np.asarray(one.header[field]), err_msg=field)
    assert type(other) is type(one)
    assert other.shape == (*one.shape, 1)[:3]
    np.testing.assert_array_equal(np.asarray(other.dataobj), np.asarray(one.dataobj).reshape(other.shape) > 4)
    np.testing.assert_array_equal(other.affine, one.affine)
    if kind is nib.Nifti1Image and name != "flat":
        np.testing.assert_array_equal(at(sitk.ReadImage(str(result))), at(sitk.ReadImage(str(image))))


def test_nifti_2_is_read_as_nifti_1(tmp_path: Path) -> None:
    for name, fields in HEADERS.items():
        one, two = (
            load(write(tmp_path / f"{number}.nii", kind, **fields))
            for number, kind in enumerate((nib.Nifti1Image, nib.Nifti2Image))
        )
        np.testing.assert_allclose(two.affine, one.affine, atol=1e-3 if name == "metre" else 1e-5, err_msg=name)


def test_a_sheared_grid_is_nibabels_in_its_unit(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", sform=(oblique((700, 800, 5000), 300), 1), xyzt_units=3)
    with pytest.raises(RuntimeError):
        sitk.ReadImage(str(path))
    np.testing.assert_allclose(load(path).affine[:3], nib.load(path).affine[:3] / 1000, atol=1e-6)


def test_units_count(tmp_path: Path) -> None:
    """1,500 micron are 1.5 mm, not 1,500; measurements in mm depend on it."""
    flat = FLAT * [1500, 1500, 3000, 1]
    path = write(tmp_path / "x.nii", sform=(flat, 1), qform=(flat, 1), xyzt_units=3)
    assert load(path).pixdim.tolist() == pytest.approx([1.5, 1.5, 3.0])


def nan_offset(fields: dict[str, Any]) -> None:
    fields["qoffset_x"] = np.nan


def no_volume(fields: dict[str, Any]) -> None:
    fields.update(qform_code=0, srow_z=np.zeros(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (nan_offset, r"expected finite numbers in the header's qoffset_x, found \[nan\]"),
        (lambda fields: fields.update(srow_y=[0, np.inf, 0, 0]), "finite numbers in the header's srow_y"),
        (lambda fields: fields.update(pixdim=(1, np.nan, 1)), "finite numbers in the header's pixdim"),
        (no_volume, "expected voxels of some volume, found spacing"),
    ],
)
def test_a_place_that_is_none_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    fields = dict(HEADERS["both"])
    change(fields)
    path = write(tmp_path / "x.nii", **fields)
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        load(path)


def test_a_field_that_no_code_declares_does_not_count(tmp_path: Path) -> None:
    path = write(tmp_path / "x.nii", **{**HEADERS["both"], "sform_code": 0, "srow_x": [np.nan] * 4})
    np.testing.assert_allclose(load(path).affine, oblique(), atol=1e-5)
