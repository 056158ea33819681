from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.quality.temperature import REACH, contour_band, fit_temperature, near_foreground


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_temperature_undoes_what_logits_were_multiplied_by(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(40_000, 3, generator=generator)
    label = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    assert fit_temperature(factor * logits, label) == pytest.approx(factor, rel=0.03)


def test_temperature_needs_voxels() -> None:
    with pytest.raises(ValueError, match="at least one voxel"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0))


def volume() -> torch.Tensor:
    label = torch.zeros(30, 28, 2, dtype=torch.long)
    label[10:20, 8:16, 0] = 1
    label[12:16, 10:14, 0] = 2
    return label


def square(pixels: int) -> np.ndarray:
    return np.ones((2 * pixels + 1, 2 * pixels + 1, 1))


def test_near_foreground_is_a_dilation_in_each_slice() -> None:
    label, pred = volume(), torch.zeros_like(volume())
    pred[25, 20, 1] = 2
    expected = ndimage.binary_dilation(((label > 0) | (pred > 0)).numpy(), square(REACH))
    assert np.array_equal(near_foreground(pred, label).numpy(), expected)


def test_contours_between_all_classes_count() -> None:
    label = volume().numpy()
    edges = ndimage.grey_dilation(label, footprint=square(1)) != ndimage.grey_erosion(label, footprint=square(1))
    expected = ndimage.binary_dilation(edges, square(REACH - 1))
    found = contour_band(volume()).numpy()
    assert np.array_equal(found[2:-2, 2:-2], expected[2:-2, 2:-2])
    assert not found[..., 1].any()
