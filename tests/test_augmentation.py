from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from scripts.augmentation import AugmentedView
from scripts.draws import Draws

NOTHING = {"degrees": 0.0, "scale": (1.0, 1.0), "stretch": 1.0, "shift": 0.0, "elastic": 0.0}


def blobs(batch: int = 6, height: int = 40, width: int = 56) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    waves = [torch.sin(4 * rows + k) * torch.cos(3 * columns - k) / 2 + 0.5 for k in range(batch)]
    return torch.stack(waves)[:, None]


def test_images_and_labels_are_sampled_where_the_grid_says() -> None:
    """Against a plain loop over the images with scipy, bilinear for images and nearest for labels."""
    view, image = AugmentedView(), blobs()
    label = (image > 0.5).to(torch.uint8)
    torch.manual_seed(3)
    grid = view.grid(image, Draws(image.device))
    torch.manual_seed(3)
    found, turned = view(image, label)
    assert turned is not None
    assert turned.dtype == torch.uint8
    height, width = image.shape[-2:]
    for number in range(len(image)):
        x = (grid[number, ..., 0].numpy() + 1) * width / 2 - 0.5
        y = (grid[number, ..., 1].numpy() + 1) * height / 2 - 0.5
        inside = (x > 0) & (x < width - 1) & (y > 0) & (y < height - 1)
        expected = map_coordinates(image[number, 0].numpy(), [y, x], order=1)
        np.testing.assert_allclose(found[number, 0].numpy()[inside], expected[inside], atol=1e-4)
        nearest = label[number, 0].numpy()[y[inside].round().astype(int), x[inside].round().astype(int)]
        assert (turned[number, 0].numpy()[inside] == nearest).mean() > 0.995  # but for ties
        outside = (x < -1) | (x > width) | (y < -1) | (y > height)
        assert (found[number, 0].numpy()[outside] == 0).all()
        assert (turned[number, 0].numpy()[outside] == 0).all()


@pytest.mark.parametrize(
    ("option", "low", "high"),
    [({"scale": (0.5, 0.5)}, 0.25, 0.25), ({"scale": (1.4, 1.4)}, 1.96, 1.96), ({"degrees": 180.0}, 1, 1)],
)
def test_objects_change_their_size_as_the_scale_says(option: dict, low: float, high: float) -> None:
    """The area of a centred disc under any rotation; also in an image that is not square."""
    rows, columns = torch.meshgrid(torch.arange(96.0) - 47.5, torch.arange(144.0) - 71.5, indexing="ij")
    disc = (rows**2 + columns**2 < 30**2).float().expand(8, 1, 96, 144)
    view, _ = AugmentedView(spatial=1.0, **{**NOTHING, **option})(disc)
    area = view.sum(dim=(1, 2, 3)) / (math.pi * 30**2)
    assert area.min() > low * 0.97
    assert area.max() < high * 1.03


def test_a_rotated_image_is_not_sheared() -> None:
    """The second moments of a bar keep their eigenvalues."""
    rows, columns = torch.meshgrid(torch.arange(96.0) - 47.5, torch.arange(144.0) - 71.5, indexing="ij")
    bar = ((rows.abs() < 4) & (columns.abs() < 25)).float()
    view, _ = AugmentedView(spatial=1.0, **{**NOTHING, "degrees": 180.0})(bar.expand(8, 1, 96, 144))

    def spread(x: torch.Tensor) -> np.ndarray:
        points = torch.stack([rows.flatten(), columns.flatten()])
        return np.linalg.eigvalsh(np.cov(points.numpy(), aweights=x.flatten().numpy()))

    for turned in view[:, 0]:
        assert spread(turned) == pytest.approx(spread(bar), rel=0.05)


def test_shift_and_flip_stay_in_their_range() -> None:
    rows, columns = torch.meshgrid(torch.arange(80.0), torch.arange(80.0), indexing="ij")
    dot = ((rows - 39.5) ** 2 + (columns - 39.5) ** 2 < 36).float().expand(200, 1, 80, 80)
    view, _ = AugmentedView(spatial=1.0, **{**NOTHING, "shift": 0.2})(dot)
    mass = view.sum(dim=(1, 2, 3))
    for axis in (rows, columns):
        centre = (view[:, 0] * axis).sum(dim=(1, 2)) / mass
        assert (centre - 39.5).abs().max() < 16.5
        assert (centre - 39.5).abs().max() > 13  # the whole range is used


def test_intensities_match_a_plain_loop_in_distribution() -> None:
    """Gamma only, always on: every image is a power of itself, with different exponents within the range."""
    view = AugmentedView(intensity=1.0, bias=0.0, contrast=(1.0, 1.0), brightness=0.0, noise=0.0)
    image = torch.full((64, 1, 8, 8), 0.5)
    exponent = view.vary_intensity(image, Draws(image.device)).mean(dim=(1, 2, 3)).log() / math.log(0.5)
    assert exponent.min() > 0.6 - 1e-4
    assert exponent.max() < 1.6 + 1e-4
    assert exponent.std() > 0.2


def test_values_stay_in_the_unit_interval_and_labels_are_untouched_by_intensities() -> None:
    view = AugmentedView(spatial=0.0, intensity=1.0)
    image, label = blobs(64), torch.randint(0, 4, (64, 1, 40, 56), dtype=torch.uint8)
    varied, same = view.labeled(image, label)
    assert varied.min() >= 0
    assert varied.max() <= 1
    assert torch.isfinite(varied).all()
    flipped = (same != label).flatten(1).any(dim=1)
    assert torch.equal(torch.where(flipped[:, None, None, None], same.flip(-1), same), label)
    assert 16 < flipped.sum() < 48
    assert (varied - torch.where(flipped[:, None, None, None], image.flip(-1), image)).abs().amax(
        dim=(1, 2, 3)
    ).min() > 0.01


def test_unlabeled_images_keep_their_intensities() -> None:
    image = blobs(16)
    view, none = AugmentedView(spatial=0.0)(image)
    assert none is None
    same = [min(float((v - x).abs().max()) for x in (i, i.flip(-1))) for i, v in zip(image, view, strict=True)]
    assert max(same) < 1e-5


def test_one_seed_one_view_also_on_rgb() -> None:
    image = torch.rand(4, 3, 32, 32)
    label = torch.zeros(4, 1, 32, 32)
    views = []
    for _ in range(2):
        torch.manual_seed(5)
        views.append(AugmentedView(intensity=1.0).labeled(image, label)[0])
    assert torch.equal(*views)
    assert not torch.equal(views[0][:, 0], views[0][:, 1])


def test_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="scale: expected a smallest and a largest positive factor"):
        AugmentedView(scale=(1.4, 0.7))
