from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Resized, ScaleIntensityRangePercentilesd
from scipy.ndimage import map_coordinates

from scripts.data import FitSlicesd


def slices(
    shape: tuple[int, ...], spacing: tuple[float, float, float], value: torch.Tensor | None = None
) -> MetaTensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-20.0, 13.0, 5.0])
    return MetaTensor(torch.rand(shape) if value is None else value, affine=affine)


def world(image: MetaTensor, index: tuple[float, float, float]) -> np.ndarray:
    return np.asarray(image.affine) @ [*index, 1.0]


@pytest.mark.parametrize(("height", "width"), [(40, 61), (150, 97), (33, 120)])
def test_window_holds_what_lies_there_in_mm(height: int, width: int) -> None:
    """Against scipy: the window's pixels are the image's values at the positions of its affine."""
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    smooth = (torch.sin(3 * rows) + torch.cos(2 * columns))[None, :, :, None].expand(1, -1, -1, 3)
    image = slices((1, height, width, 3), (1.25, 1.5, 8.0), smooth.clone())
    fitted = FitSlicesd("image", 48, pixel_spacing=2.0)({"image": image})["image"]
    assert fitted.shape == (1, 48, 48, 3)
    sizes = np.linalg.norm(np.asarray(fitted.affine)[:3, :3], axis=0)
    assert sizes == pytest.approx([2.0, 2.0, 8.0], rel=0.02)  # the whole slice has a whole number of pixels
    centre, middle = world(image, ((height - 1) / 2, (width - 1) / 2, 0)), world(fitted, (23.5, 23.5, 0))
    assert np.abs(centre - middle)[:2].max() <= 1.01  # half a pixel for an odd remainder

    inverse = np.linalg.inv(np.asarray(image.affine)) @ np.asarray(fitted.affine)
    index = np.stack(np.meshgrid(np.arange(48), np.arange(48), indexing="ij")).reshape(2, -1)
    there = inverse[:2, :2] @ index + inverse[:2, 3:4]
    inside = ((there > 2) & (there < np.array([[height - 3], [width - 3]]))).all(axis=0)
    expected = map_coordinates(smooth[0, :, :, 0].numpy(), there, order=1)
    found = fitted[0, :, :, 0].numpy().ravel()
    assert inside.sum() > 300
    assert np.abs(found - expected)[inside].max() < 0.01
    outside = ((there < -0.51) | (there > np.array([[height - 0.49], [width - 0.49]]))).any(axis=0)
    assert (found[outside] == 0).all()


@pytest.mark.parametrize("pixel_spacing", [1.0, 2.0, "aspect", None])
def test_label_comes_back_where_it_was(pixel_spacing: float | str | None) -> None:
    """Inverse of image, label and prediction: same grid, same affine, and a disc in the window is the same disc."""
    rows, columns = torch.meshgrid(torch.arange(70.0), torch.arange(91.0), indexing="ij")
    disc = ((rows - 33) ** 2 + (columns - 47) ** 2 < 15**2).float()[None, :, :, None].expand(1, -1, -1, 2)
    fit = Compose(
        [
            FitSlicesd(
                ["image", "label"], 96, pixel_spacing, ["trilinear", "nearest-exact"], [pixel_spacing is None, False]
            )
        ]
    )
    data = fit({"image": slices((1, 70, 91, 2), (1.0, 1.0, 8.0)), "label": slices((1,), (1, 1, 8), disc.clone())})
    logits = torch.nn.functional.one_hot(data["label"][0].long(), 3).movedim(-1, 0).float() * 8 - 3
    data["pred"] = MetaTensor(logits.as_tensor())
    undone = Invertd(["pred", "label"], fit, ["image", "label"], nearest_interp=[False, True], to_tensor=True)(data)
    back, label = undone["pred"], undone["label"]
    assert back.shape == (3, 70, 91, 2)
    original = slices((1, 70, 91, 2), (1.0, 1.0, 8.0))
    np.testing.assert_allclose(np.asarray(back.affine), np.asarray(original.affine), atol=1e-9)
    for found in (back.argmax(dim=0), label[0]):
        overlap = 2 * (found * disc[0]).sum() / (found.sum() + disc[0].sum())
        assert overlap > 0.94


def test_outside_of_the_window_is_background() -> None:
    """A window of 20 mm in a slice of 40 mm, predicted to be class 2 throughout."""
    fit = Compose([FitSlicesd("image", 20, pixel_spacing=1.0)])
    data = fit({"image": slices((1, 40, 40, 1), (1.0, 1.0, 5.0))})
    for class_2 in (torch.tensor([-4.0, -5.0, 6.0]), torch.tensor([0.1, 0.1, 0.8])):  # logits, probabilities
        data["pred"] = MetaTensor(class_2[:, None, None, None].expand(-1, 20, 20, 1).clone())
        back = Invertd("pred", fit, "image", nearest_interp=False, to_tensor=True)(dict(data))["pred"].argmax(dim=0)
        assert (back[10:30, 10:30] == 2).all()
        assert back.sum() == 2 * 400


def test_without_a_spacing_slices_are_squeezed_as_monai_does() -> None:
    image = slices((1, 31, 50, 4), (1.0, 1.0, 8.0))
    found = FitSlicesd("image", 24)({"image": image})["image"]
    expected = Resized("image", (24, 24, -1), mode="trilinear")({"image": image})["image"]
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    np.testing.assert_allclose(np.asarray(found.affine), np.asarray(expected.affine))


def test_aspect_fills_the_longer_side() -> None:
    fitted = FitSlicesd("image", 32, "aspect")({"image": slices((3, 20, 40, 1), (1.0, 1.0, 1.0)) + 1})["image"]
    assert fitted.shape == (3, 32, 32, 1)
    assert (fitted[:, :8] == 0).all()
    assert (fitted[:, 8:24] > 0).all()
    assert (fitted[:, 24:] == 0).all()


@pytest.mark.parametrize("pixel_spacing", [0, -1.0, "mm", True])
def test_other_pixel_spacings_are_refused(pixel_spacing: object) -> None:
    with pytest.raises(ValueError, match="pixel_spacing: expected None, mm or 'aspect'"):
        FitSlicesd("image", 32, pixel_spacing)  # type: ignore[arg-type]


def test_percentiles_of_the_configs_are_those_of_numpy() -> None:
    """0 and 100 are the protocol's extremes; 1 and 99 ignore a bright speck."""
    image = torch.rand(1, 50, 60, 4) * 300
    image[0, 0, 0, 0] = 1e6
    for lower, upper in ((0, 100), (1, 99)):
        scale = ScaleIntensityRangePercentilesd("image", lower, upper, 0.0, 1.0, clip=True)
        low, high = np.percentile(image.numpy(), [lower, upper])
        expected = np.clip((image.numpy() - low) / (high - low), 0, 1)
        np.testing.assert_allclose(scale({"image": image.clone()})["image"].numpy(), expected, atol=1e-6)
