from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from scripts.views import MixedView, StrongView, WeakView

# --- weak views


def orientations(x: Tensor) -> list[Tensor]:
    """The image unchanged, flipped along rows, along columns, along both."""
    return [x, x.flip(-2), x.flip(-1), x.flip(-2, -1)]


def test_flips_are_the_same_for_image_and_label() -> None:
    torch.manual_seed(0)
    image = torch.rand(64, 3, 6, 10)
    label = (image[:, :1] > 0.5).to(torch.uint8)
    view, flipped = WeakView()(image, label)
    assert flipped is not None
    assert flipped.dtype == torch.uint8
    assert torch.equal(flipped, (view[:, :1] > 0.5).to(torch.uint8))
    kinds = [
        [torch.equal(after, x) for x in orientations(before)].index(True)
        for before, after in zip(image, view, strict=True)
    ]
    assert all(kinds.count(kind) >= 6 for kind in range(4))  # 16 expected of each


@pytest.mark.parametrize("mode", ["flip", "rotate_flip"])
def test_shared_view_moves_all_images_alike(mode: str) -> None:
    image = torch.rand(1, 1, 8, 8).expand(5, 1, 8, 8)
    for seed in range(8):
        torch.manual_seed(seed)
        view, _ = WeakView(mode, shared=True)(image)
        assert torch.equal(view, view[:1].expand_as(view))


def test_view_without_a_label_and_mode_none() -> None:
    image, label = torch.rand(2, 1, 8, 8), torch.randint(0, 4, (2, 1, 8, 8))
    view, none = WeakView()(image)
    assert view.shape == image.shape
    assert none is None
    same, same_label = WeakView("none")(image, label)
    assert torch.equal(same, image)
    assert same_label is not None
    assert torch.equal(same_label, label)


def test_rotate_flip_turns_label_with_image() -> None:
    torch.manual_seed(0)
    rows, columns = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    blob = ((rows - 14) ** 2 + (columns - 30) ** 2 < 81).float()
    image = blob.expand(200, 1, 48, 48).clone()
    view, label = WeakView("rotate_flip")(image, image.to(torch.uint8))
    assert label is not None
    assert label.dtype == torch.uint8
    assert 0 <= view.min() <= view.max() <= 1

    def centroid(x: Tensor) -> Tensor:
        x = x[:, 0].float()
        mass = x.sum(dim=(1, 2))
        return torch.stack([(x * axis).sum(dim=(1, 2)) / mass for axis in (rows, columns)], dim=1)

    torch.testing.assert_close(centroid(view), centroid(label), rtol=0, atol=0.5)
    offset = centroid(view) - 23.5
    angle = torch.rad2deg(torch.atan2(offset[:, 0], offset[:, 1]))
    start = math.degrees(math.atan2(14 - 23.5, 30 - 23.5))
    unchanged = (view == image).flatten(1).all(1)
    # a flip or a quarter turn keeps the set of values, a rotation interpolates
    rotated = torch.tensor([bool(((x > 0) & (x < 1)).any()) for x in view])
    assert 20 <= rotated.sum() <= 80  # 50 expected
    assert 20 <= unchanged.sum() <= 80
    turn = (angle - start)[rotated].abs()
    assert turn.max() <= 20.5
    assert turn.max() > 12
    places = {(round(float(a)), round(float(b))) for a, b in offset[~rotated]}
    assert len(places) == 5  # untouched, or a quarter-turn multiple and one flip: one of the four reflections


def test_rotate_flip_refuses_quarter_turns_of_oblong_images() -> None:
    with pytest.raises(ValueError, match="square"):
        WeakView("rotate_flip")(torch.rand(2, 1, 8, 12))


def test_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'flips'"):
        WeakView("flips")


# --- strong views


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (33, 47)])
def test_strong_views_are_seeded_differ_and_stay_in_range(channels: int, size: tuple[int, int]) -> None:
    image = torch.rand(6, channels, *size)
    before = image.clone()
    strong = StrongView()
    torch.manual_seed(3)
    first, second = strong(image), strong(image)
    torch.manual_seed(3)
    again = strong(image)
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.box, again.box)
    assert torch.equal(first.partner, again.partner)
    assert not torch.equal(first.image, second.image)
    assert torch.equal(image, before)
    for view in (first, second):
        assert view.image.shape == image.shape
        assert view.box.shape == (6, 1, *size)
        assert 0 <= view.image.min() <= view.image.max() <= 1


@pytest.mark.parametrize("channels", [1, 3])
def test_views_do_not_depend_on_the_memory_layout(channels: int) -> None:
    image = torch.rand(4, channels, 24, 32)
    strong = StrongView(jitter=1, blur=1, cutmix=1)
    torch.manual_seed(0)
    plain = strong(image)
    torch.manual_seed(0)
    last = strong(image.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last.image, plain.image)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_float32_under_autocast(channels: int) -> None:
    image = torch.rand(4, channels, 16, 16)

    def views() -> list[Tensor]:
        torch.manual_seed(2)
        return [StrongView(jitter=1, blur=1, cutmix=0)(image).image, WeakView("rotate_flip")(image)[0]]

    exact = views()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = views()
    for a, b in zip(exact, mixed, strict=True):
        assert torch.equal(a, b)


def test_probability_of_each_operation() -> None:
    torch.manual_seed(0)
    image = torch.rand(400, 1, 16, 16) * 0.5 + 0.25
    for name, probability in {"jitter": 0.8, "blur": 0.5, "cutmix": 0.5}.items():
        only = StrongView(**{"jitter": 0.0, "blur": 0.0, "cutmix": 0.0, name: getattr(StrongView(), name)})
        changed = (only(image).image != image).flatten(1).any(1).float().mean()
        assert changed == pytest.approx(probability, abs=0.08)
    assert torch.equal(StrongView(0, 0, 0)(image).image, image)


def test_grey_jitter_is_brightness_then_contrast_about_the_mean() -> None:
    torch.manual_seed(0)
    image = torch.rand(300, 1, 12, 12) * 0.2 + 0.3  # no factor reaches the clamp
    view = StrongView(jitter=1, blur=0, cutmix=0)(image).image
    mean, out_mean = image.mean((1, 2, 3)), view.mean((1, 2, 3))
    brightness = out_mean / mean
    contrast = view.std((1, 2, 3)) / image.std((1, 2, 3)) / brightness
    shape = (-1, 1, 1, 1)
    expected = out_mean.view(shape) + (image - mean.view(shape)) * (brightness * contrast).view(shape)
    torch.testing.assert_close(view, expected, rtol=0, atol=1e-5)
    for factor in (brightness, contrast):
        assert 0.499 <= factor.min() < 0.55
        assert 1.45 < factor.max() <= 1.501
        assert factor.mean() == pytest.approx(1.0, abs=0.06)
    assert torch.corrcoef(torch.stack([brightness, contrast]))[0, 1].abs() < 0.2


def yiq(image: Tensor) -> tuple[Tensor, Tensor]:
    """Luma and complex chroma of RGB images ``[B, 3, H, W]``."""
    r, g, b = image.double().unbind(1)
    i, q = 0.5959 * r - 0.2746 * g - 0.3213 * b, 0.2115 * r - 0.5227 * g + 0.3112 * b
    return 0.299 * r + 0.587 * g + 0.114 * b, torch.complex(i, q)


def test_colour_jitter_scales_luma_and_turns_chroma() -> None:
    torch.manual_seed(0)
    image = 0.4 + 0.06 * (torch.rand(300, 3, 6, 6) - 0.5)  # no factor reaches the clamp
    view = StrongView(jitter=1, blur=0, cutmix=0)(image).image
    (luma, chroma), (out_luma, out_chroma) = yiq(image), yiq(view)
    brightness = out_luma.mean((1, 2)) / luma.mean((1, 2))
    contrast = out_luma.std((1, 2)) / luma.std((1, 2)) / brightness
    ratio = out_chroma / chroma  # one complex number per image: length is saturation, angle is hue
    factor = ratio.mean((1, 2))
    torch.testing.assert_close(ratio, factor[:, None, None].expand_as(ratio), rtol=0, atol=2e-2)
    saturation = factor.abs() / brightness / contrast
    for value in (brightness, contrast, saturation):
        assert 0.49 <= value.min() < 0.56
        assert 1.44 < value.max() <= 1.51
    angle = torch.rad2deg(factor.angle())
    assert angle.abs().max() <= 90.5
    assert angle.min() < -80
    assert angle.max() > 80


def test_colour_jitter_keeps_grey_pixels_grey() -> None:
    image = torch.rand(8, 1, 9, 9).expand(8, 3, 9, 9)
    view = StrongView(jitter=1, blur=0, cutmix=0)(image).image
    assert not torch.equal(view, image)
    assert (view.amax(1) - view.amin(1)).max() < 1e-5


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_equals_scipy(channels: int, sigma: float) -> None:
    image = torch.rand(3, channels, 17, 23)
    strong = StrongView(jitter=0, blur=1, cutmix=0)
    strong.sigma = (sigma, sigma)
    expected = image.double().numpy()
    for axis in (-2, -1):
        expected = gaussian_filter1d(expected, sigma, axis=axis, mode="mirror", radius=6)
    torch.testing.assert_close(strong(image).image, torch.from_numpy(expected).float(), rtol=0, atol=1e-5)


def test_blur_has_a_sigma_per_image_within_its_range() -> None:
    torch.manual_seed(0)
    image = torch.zeros(200, 1, 25, 25)
    image[:, :, 12, 12] = 1
    view = StrongView(jitter=0, blur=1, cutmix=0)(image).image[:, 0]
    offset = torch.arange(25.0) - 12
    variance = (view.sum(2) * offset**2).sum(1)
    # cut at three sigma, the largest loses 3 % of its variance; the smallest is one pixel wide
    assert 0 <= variance.min() < 0.1
    assert 3 < variance.max() < 4
    assert len({round(float(v), 4) for v in variance[variance > 0.05]}) > 150


def marked_boxes(view: MixedView, image: Tensor) -> list[tuple[int, int, int, int] | None]:
    """(top, bottom, left, right) of the box pasted into each constant image."""
    boxes: list[tuple[int, int, int, int] | None] = []
    for before, after, partner in zip(image, view.image, view.partner, strict=True):
        pasted = (after != before).any(0)
        if not pasted.any():
            boxes.append(None)
            continue
        rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
        top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
        assert pasted[top:bottom, left:right].all()
        assert pasted.sum() == (bottom - top) * (right - left)
        assert (after[:, pasted] == image[partner, :, :1, 0]).all()
        boxes.append((top, bottom, left, right))
    return boxes


@pytest.mark.parametrize("size", [(64, 64), (62, 94)])
def test_cutmix_boxes(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    height, width = size
    image = (torch.arange(1, 301) / 301.0).view(300, 1, 1, 1).expand(300, 1, height, width)
    view = StrongView(jitter=0, blur=0, cutmix=1)(image)
    assert not (view.partner == torch.arange(300)).any()
    boxes = marked_boxes(view, image)
    areas, tall, centres = [], [], []
    for number, box in enumerate(boxes):
        assert box is not None
        top, bottom, left, right = box
        assert all(edge % 4 == 0 for edge in box)
        assert bottom <= height
        assert right <= width
        expected = torch.zeros(1, height, width, dtype=torch.bool)
        expected[:, top:bottom, left:right] = True
        assert torch.equal(view.box[number], expected)
        h, w = bottom - top, right - left
        # each side was rounded to the grid and clipped to the image
        assert (h - 2) * (w - 2) <= 0.4 * height * width
        if h < height // 4 * 4 and w < width // 4 * 4:
            assert (h + 2) * (w + 2) >= 0.02 * height * width
            assert (h - 2) / (w + 2) <= 3.34
            assert (w - 2) / (h + 2) <= 3.34
        areas.append(h * w / height / width)
        tall.append(h > w)
        centres.append((top + h / 2) / height)
    assert 0.17 < sum(areas) / 300 < 0.23  # .21 without clipping
    assert 0.35 < sum(tall) / 300 < 0.62
    assert 0.45 < sum(centres) / 300 < 0.55
    assert len(set(boxes)) > 100


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_cutmix_partner_is_another_image(batch: int) -> None:
    strong, image = StrongView(), torch.rand(batch, 1, 8, 8)
    # of eight images and 60 draws, one seed in 200 would miss a pair; of 200 draws, one in 10^11
    partners = torch.stack([strong(image).partner for _ in range(200)])
    assert not (partners == torch.arange(batch)).any()
    assert all(len(set(partners[:, i].tolist())) == batch - 1 for i in range(batch))


def test_cutmix_of_one_image_changes_nothing() -> None:
    image = torch.rand(1, 1, 16, 16)
    view = StrongView(jitter=0, blur=0, cutmix=1)(image)
    assert torch.equal(view.image, image)
    target = torch.randint(0, 4, (1, 16, 16))
    assert torch.equal(view.paste(target), target)


def test_pasted_pixels_come_from_the_partners_strong_view() -> None:
    image = torch.rand(6, 1, 32, 32)
    torch.manual_seed(5)
    alone = StrongView(jitter=1, blur=1, cutmix=0)(image).image
    torch.manual_seed(5)
    mixed = StrongView(jitter=1, blur=1, cutmix=1)(image)
    assert not torch.equal(alone, image)
    for i in range(6):
        inside = mixed.box[i, 0]
        partner = int(mixed.partner[i])
        assert inside.any()
        assert torch.equal(mixed.image[i][:, inside], alone[partner][:, inside])
        assert torch.equal(mixed.image[i][:, ~inside], alone[i][:, ~inside])


@pytest.mark.parametrize(("height", "width"), [(32, 48), (35, 50)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_paste_equals_pasting_by_hand(height: int, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    image = (torch.arange(1, 9) / 9.0).view(8, 1, 1, 1).expand(8, 1, height, width)
    view = StrongView(jitter=0, blur=0, cutmix=0.7)(image)
    boxes = marked_boxes(view, image)
    assert None in boxes
    for step in (1, 4):
        target = (torch.rand(8, height // step, width // step) * 9).to(dtype)
        expected = target.clone()
        for i, box in enumerate(boxes):
            if box is not None:
                rows, columns = (slice(a // step, b // step) for a, b in (box[:2], box[2:]))
                expected[i, rows, columns] = target[int(view.partner[i]), rows, columns]
        pasted = view.paste(target)
        assert pasted.dtype == dtype
        assert torch.equal(pasted, expected)


def test_two_boxes_of_two_views_are_independent() -> None:
    strong, image = StrongView(jitter=0, blur=0, cutmix=1), torch.rand(8, 1, 64, 64)
    boxes = [strong(image).box for _ in range(4)]
    assert not any(torch.equal(a, b) for a, b in pairwise(boxes))
