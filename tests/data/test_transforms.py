from __future__ import annotations

import itertools
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, Invertd, Orientationd, Resized
from PIL import Image

from bundle.workflows import CONFIGS
from scripts.data import LabelValuesd, LoadImageVolumed, ScaleImaged, ThroughPlaneLastd

CANONICAL = np.arange(7 * 6 * 4, dtype=np.float32).reshape(7, 6, 4)  # LPS, slices last
SPACING = (1.5, 1.4, 9.0)
LPS = np.diag([-1.0, -1.0, 1.0])


def _rotation(degrees: float) -> np.ndarray:
    """Rotation about an oblique axis."""
    axis = np.array([1.0, 2.0, -1.0]) / np.sqrt(6)
    a = np.deg2rad(degrees)
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) * np.cos(a) + (1 - np.cos(a)) * np.outer(axis, axis) - np.sin(a) * cross


def _stored(order: tuple[int, ...], flips: tuple[int, ...], degrees: float) -> MetaTensor:
    """The canonical volume with permuted and flipped axes, as in a file, and the matching affine."""
    affine = np.eye(4)
    affine[:3, :3] = _rotation(degrees) @ LPS @ np.diag(SPACING)
    affine[:3, 3] = (11.5, -7.25, 3.0)
    ornt = np.array([[order.index(i), flips[order.index(i)]] for i in range(3)])
    array = nib.apply_orientation(CANONICAL, ornt)
    affine = affine @ nib.orientations.inv_ornt_aff(ornt, CANONICAL.shape)
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(array))[None], affine=torch.from_numpy(affine))


CASES = [
    (order, flips, degrees)
    for order in itertools.permutations(range(3))
    for flips in ((1, 1, 1), (-1, 1, -1))
    for degrees in (0.0, 20.0)
]


@pytest.mark.parametrize(("order", "flips", "degrees"), CASES)
def test_any_storage_gives_the_same_array_and_inverts(
    order: tuple[int, ...], flips: tuple[int, ...], degrees: float
) -> None:
    preprocessing = Compose([Orientationd("image", axcodes="LPS"), ThroughPlaneLastd("image")])
    stored = _stored(order, flips, degrees)
    item = preprocessing({"image": stored})
    np.testing.assert_array_equal(item["image"][0].numpy(), CANONICAL)
    expected = _rotation(degrees) @ LPS @ np.diag(SPACING)
    np.testing.assert_allclose(item["image"].affine[:3, :3], expected, atol=1e-12)

    item["pred"] = MetaTensor(torch.cat([item["image"], -item["image"]]).as_tensor())  # another number of channels
    pred = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)(item)["pred"]
    np.testing.assert_array_equal(pred.numpy(), torch.cat([stored, -stored]).numpy())
    np.testing.assert_allclose(pred.affine.numpy(), stored.affine.numpy(), atol=1e-12)


def test_slices_along_another_anatomical_axis() -> None:
    """A coronal stack, stored as LPS: its slices go from front to back, and the voxels keep their position."""
    affine = torch.diag(torch.tensor([-1.5, -9.0, 1.4, 1.0], dtype=torch.float64))
    stored = MetaTensor(torch.from_numpy(CANONICAL.transpose(0, 2, 1).copy())[None], affine=affine)
    preprocessing = Compose([ThroughPlaneLastd("image"), Resized("image", spatial_size=(14, 12, -1), mode="trilinear")])
    moved = ThroughPlaneLastd("image")({"image": stored})["image"]
    np.testing.assert_array_equal(moved[0].numpy(), CANONICAL)
    np.testing.assert_allclose(
        moved.affine @ torch.tensor([2.0, 3, 1, 1]).double(), affine @ torch.tensor([2.0, 1, 3, 1]).double()
    )

    item = preprocessing({"image": stored})
    item["pred"] = MetaTensor(item["image"].as_tensor())
    pred = Invertd("pred", transform=preprocessing, orig_keys="image", nearest_interp=False)(item)["pred"]
    assert pred.shape == stored.shape
    np.testing.assert_allclose(pred.affine.numpy(), stored.affine.numpy(), atol=1e-9)
    assert stored.affine.equal(affine), "the input is left alone"


def test_image_and_label_are_cut_together() -> None:
    """A label by another program, with a differently rounded header, follows its image."""
    affines = [np.diag([*spacing, 1.0]) for spacing in ((0.8, 0.8000001, 1.0), (1.0, 0.8, 0.8))]
    volumes = [MetaTensor(torch.rand(1, 8, 9, 10), affine=torch.from_numpy(affine)) for affine in affines]
    item = ThroughPlaneLastd(("image", "label"))(dict(zip(("image", "label"), volumes, strict=True)))
    assert item["image"].shape == item["label"].shape == (1, 8, 9, 10)


def test_a_plane_counts_for_all_volumes_and_thick_slices_across_it_are_named(caplog: pytest.LogCaptureFixture) -> None:
    transform = ThroughPlaneLastd("image", "coronal")
    for spacing, warned in (((1, 1, 1), False), ((0.3, 0.3, 0.5), False), ((1, 1, 9), True)):
        caplog.clear()
        item = transform(
            {"image": MetaTensor(torch.rand(1, 8, 9, 10), affine=torch.diag(torch.tensor([*spacing, 1.0])))}
        )
        assert item["image"].shape == (1, 8, 10, 9)
        assert ("cut into coronal slices, across thick ones (voxels of 1 x 1 x 9 mm)" in caplog.text) == warned


def test_another_axis_is_refused() -> None:
    with pytest.raises(ValueError, match="slice_axis: expected one of sagittal, coronal, axial, thickest, found 2"):
        ThroughPlaneLastd("image", 2)


def test_images_and_missing_keys_pass() -> None:
    image = MetaTensor(torch.rand(3, 8, 5))
    transform = ThroughPlaneLastd(("image", "label"), allow_missing_keys=True)
    item = transform({"image": image})
    assert item["image"].equal(image)
    assert transform.inverse(item)["image"].equal(image)
    with pytest.raises(KeyError):
        ThroughPlaneLastd(("image", "label"))({"image": image})


def test_channels_of_volumes_are_scaled_one_by_one_and_colours_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for channels in (1, 2, 3, 4):
        factors = 10.0 ** np.arange(channels)
        voxels = (rng.integers(1, 50, (9, 8, 3, channels)) * factors).astype(np.float32)
        nib.save(nib.Nifti1Image(voxels, np.diag([1, 1, 5, 1])), tmp_path / "x.nii")
        steps = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image"), ScaleImaged("image")])
        found = steps({"image": str(tmp_path / "x.nii")})["image"].numpy()
        low, high = (f(voxels, axis=(0, 1, 2)) for f in (np.min, np.max))
        np.testing.assert_allclose(found, np.moveaxis((voxels - low) / (high - low), -1, 0), atol=1e-6)
    pixels = rng.integers(0, 200, (8, 9, 3), dtype=np.uint8) // np.uint8([1, 2, 4])
    Image.fromarray(pixels).save(tmp_path / "x.png")
    found = steps({"image": str(tmp_path / "x.png")})["image"].numpy()
    low, high = pixels.min(), pixels.max()
    np.testing.assert_allclose(found[..., 0], (pixels.transpose(2, 1, 0) - float(low)) / (high - low), atol=1e-6)


def test_clipped_photographs_look_alike_under_every_lamp(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 120, (20, 20, 3), dtype=np.uint8)
    steps = Compose([LoadImageVolumed("image"), EnsureChannelFirstd("image"), ScaleImaged("image", (1, 99))])
    found = []
    for name, lamp in {"white": [1, 1, 1], "orange": [2, 1, 1]}.items():
        Image.fromarray(pixels * np.uint8(lamp)).save(tmp_path / f"{name}.png")
        found.append(steps({"image": str(tmp_path / f"{name}.png")})["image"].numpy())
    np.testing.assert_allclose(*found, atol=1e-6)
    low, high = np.percentile(pixels, (1, 99), axis=(0, 1))
    expected = ((pixels - low) / (high - low)).clip(0, 1).transpose(2, 1, 0)
    np.testing.assert_allclose(found[0][..., 0], expected, atol=1e-5)


@pytest.mark.parametrize("photographs", [False, True])
@pytest.mark.parametrize("image_size", [128, 100])
def test_training_leaves_image_and_label_in_one_place(tmp_path: Path, image_size: int, photographs: bool) -> None:
    """A disc and its label keep their position in the slice: mode "nearest" would move the label by half a pixel."""
    size, centre = (216, 180), (131.3, 62.8)
    rows, columns = np.indices(size)
    disc = np.hypot(rows - centre[0], columns - centre[1]) < 41
    volume = np.repeat(disc[..., None], 3, axis=-1)
    for name, array in {"image": (700 * volume).astype(np.int16), "label": (2 * volume).astype(np.uint8)}.items():
        nib.save(nib.Nifti1Image(array, np.diag([-1.5, -1.5, 8.0, 1.0])), tmp_path / f"{name}.nii.gz")
    parser = ConfigParser(ConfigParser.load_config_file(str(CONFIGS / "train.json")))
    parser.update({"image_size": image_size, "anti_aliasing": photographs, "slice_axis": "axial"})
    preprocessing = parser.get_parsed_content("train#preprocessing")
    item = preprocessing({name: str(tmp_path / f"{name}.nii.gz") for name in ("image", "label")})

    places = {}
    for name in ("image", "label"):
        found = item[name].numpy()
        assert found.shape == (1, image_size, image_size, 3)
        grid = np.indices(found.shape)
        places[name] = np.array([(found * grid[axis]).sum() / found.sum() for axis in (1, 2)])
    np.testing.assert_allclose(places["label"], places["image"], rtol=0, atol=0.1)
    true = [(np.argwhere(disc)[:, axis].mean() + 0.5) * image_size / size[axis] - 0.5 for axis in (0, 1)]
    np.testing.assert_allclose(places["image"], true, rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [([0, 255, 0], [0, 1, 0]), ([0, 1, 0], [0, 1, 0]), ([0, 0, 0], [0, 0, 0]), ([1, 255, 0], None), ([0, 2, 1], None)],
)
def test_viewers_labels_with_class_numbers_are_accepted(stored: list[int], expected: list[int] | None) -> None:
    transform = LabelValuesd("label", [0, 255])
    label = {"label": torch.tensor(stored, dtype=torch.float32)}
    if expected is None:
        with pytest.raises(ValueError, match="label values must be 0, 255, found"):
            transform(label)
    else:
        assert transform(label)["label"].tolist() == expected


def test_a_viewers_classes_are_refused_where_they_could_pass_for_stored_values() -> None:
    transform = LabelValuesd(
        "label", [0, 2, 3]
    )  # 2 is the stored value of the first class, and the second class's number
    assert transform({"label": torch.tensor([0.0, 3.0, 2.0])})["label"].tolist() == [0, 2, 1]
    with pytest.raises(ValueError, match="label values must be 0, 2, 3, found 1"):
        transform({"label": torch.tensor([0.0, 1.0, 2.0])})
