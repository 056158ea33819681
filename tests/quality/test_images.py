from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import GaussianSmooth

from scripts.quality.images import FEWEST_IMAGES, image_features, training_ranges, unlike


def image(seed: int, spacing: float = 1.5, file: str = "a.nii.gz") -> MetaTensor:
    generator = torch.Generator().manual_seed(seed)
    smooth = GaussianSmooth(2.0)(torch.rand(1, 32, 40, 3, generator=generator) ** 2)
    scaled = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    affine = torch.diag(torch.tensor([spacing, spacing, 8.0, 1.0], dtype=torch.float64))
    return MetaTensor(scaled, affine=affine, meta={"filename_or_obj": file})


@pytest.fixture(scope="module")
def ranges() -> dict[str, list[float]]:
    return training_ranges(image_features(image(seed)) for seed in range(40))


def test_images_like_the_training_set_pass(ranges: dict[str, list[float]]) -> None:
    found = [unlike(image_features(image(100 + seed)), ranges) for seed in range(20)]
    assert sum(map(bool, found)) <= 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x: 1 - x, "intensities"),
        (lambda x: x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), "noise or blur"),
        (GaussianSmooth(6.0), "noise or blur"),
    ],
)
def test_what_is_unlike_is_named(ranges: dict[str, list[float]], change: object, words: str) -> None:
    assert f"{words} unlike the training images'" in unlike(image_features(change(image(200))), ranges)  # type: ignore[operator]


def test_another_field_of_view(ranges: dict[str, list[float]]) -> None:
    found = unlike(image_features(image(200, spacing=3.0)), ranges)
    assert found == ["field of view unlike the training images'"]


def test_a_common_field_of_view_tolerates_rounding(ranges: dict[str, list[float]]) -> None:
    features = {**image_features(image(0)), "width_mm": 192.00002}
    assert unlike(features, {"width_mm": [192.0, 192.0]}) == []


def test_photographs_and_plain_tensors_have_no_size() -> None:
    assert "height_mm" not in image_features(image(0, file="a.jpg"))
    assert "height_mm" not in image_features(image(0).as_tensor())
    assert image_features(image(0))["width_mm"] == pytest.approx(60.0)


def test_few_images_give_no_ranges_and_features_must_be_known_of_all() -> None:
    rows = [image_features(image(seed)) for seed in range(FEWEST_IMAGES)]
    assert training_ranges(rows[1:]) == {}
    del rows[3]["width_mm"]
    assert set(training_ranges(rows)) == {"dark", "middle", "bright", "roughness", "height_mm"}
