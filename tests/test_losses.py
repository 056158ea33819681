from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceCELoss
from torch import Tensor

from scripts.losses import DiceCE, MaskedDice, PseudoLabel, coverage, pseudo_label
from scripts.methods import Objective
from scripts.networks import UNet


def probability(logits: Tensor) -> list[float]:
    mass = [math.exp(float(z)) for z in logits]
    return [v / sum(mass) for v in mass]


def plain_dice(logits: Tensor, label: Tensor, passed: Tensor | None = None, images: range | None = None) -> float:
    """1 - 2 sum(p y) / (sum(p^2) + sum(y^2)) per class over the mask, mean over the classes."""
    classes = logits.shape[1]
    overlap, size = [0.0] * classes, [0.0] * classes
    for b in images or range(len(logits)):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                if passed is not None and not passed[b, y, x]:
                    continue
                p = probability(logits[b, :, y, x])
                for c in range(classes):
                    truth = float(label[b, y, x] == c)
                    overlap[c] += p[c] * truth
                    size[c] += p[c] ** 2 + truth**2
    return sum(1 - 2 * o / s if s > 0 else 0.0 for o, s in zip(overlap, size, strict=True)) / classes


def example() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels without class 3, and a mask."""
    torch.manual_seed(0)
    return 2 * torch.randn(3, 4, 5, 6), torch.randint(0, 3, (3, 5, 6)), torch.rand(3, 5, 6) > 0.6


@pytest.mark.parametrize("masked", [False, True])
def test_dice_over_the_batch_equals_loops(masked: bool) -> None:
    logits, label, passed = example()
    mask = passed if masked else None
    assert float(MaskedDice()(logits, label, mask)) == pytest.approx(plain_dice(logits, label, mask), abs=2e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_dice_per_image_equals_loops(masked: bool) -> None:
    logits, label, passed = example()
    passed[1] = False  # the mask of one image is empty: its loss is 0
    mask = passed if masked else None
    expected = sum(plain_dice(logits, label, mask, range(b, b + 1)) for b in range(3)) / 3
    assert float(MaskedDice(per_image=True)(logits, label, mask)) == pytest.approx(expected, abs=2e-5)
    assert expected != pytest.approx(plain_dice(logits, label, mask), abs=1e-3)


def test_pixels_that_do_not_pass_have_no_influence_and_no_gradient() -> None:
    logits, label, passed = example()
    other_logits, other_label = logits.clone(), label.clone()
    other_logits[~passed[:, None].expand_as(logits)] = 7.0
    other_label[~passed] = 3
    loss = MaskedDice()
    assert torch.equal(loss(logits, label, passed), loss(other_logits, other_label, passed))
    logits.requires_grad_()
    loss(logits, label, passed).backward()
    assert logits.grad is not None
    assert not logits.grad.masked_select(~passed[:, None]).any()
    assert logits.grad.masked_select(passed[:, None]).any()


@pytest.mark.parametrize("per_image", [False, True])
def test_where_nothing_passes_the_loss_is_zero_and_attached(per_image: bool) -> None:
    logits, label, _ = example()
    logits.requires_grad_()
    loss = MaskedDice(per_image)(logits, label, torch.zeros(3, 5, 6, dtype=torch.bool))
    assert loss.item() == 0.0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_perfect_and_wrong_predictions() -> None:
    label = torch.randint(0, 3, (2, 8, 8))
    logits = 100.0 * torch.nn.functional.one_hot(label, 3).movedim(-1, 1)
    assert MaskedDice()(logits, label).item() == pytest.approx(0, abs=1e-5)
    assert MaskedDice()(logits, (label + 1) % 3).item() == pytest.approx(1, abs=1e-4)


def test_dice_of_bf16_logits_is_computed_in_float32() -> None:
    logits, label, passed = example()
    logits = logits.bfloat16()
    loss = MaskedDice()(logits, label, passed)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, MaskedDice()(logits.float(), label, passed))


@pytest.mark.parametrize("label_type", [torch.uint8, torch.int64])
def test_supervised_loss_equals_loops(label_type: torch.dtype) -> None:
    logits, label, _ = example()
    terms = [
        -math.log(probability(logits[b, :, y, x])[int(label[b, y, x])])
        for b in range(3)
        for y in range(5)
        for x in range(6)
    ]
    expected = (sum(terms) / len(terms) + plain_dice(logits, label)) / 2
    assert float(Objective(UNet()).supervised_loss(logits, label.to(label_type))) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_supervised_loss_equals_monai(batch: bool, channels_last: bool) -> None:
    """Value and gradient; of three images one lacks a class."""
    weights = {"lambda_dice": 0.5, "lambda_ce": 0.5}
    reference = DiceCELoss(softmax=True, to_onehot_y=True, squared_pred=True, batch=batch, **weights)
    logits, label = 3 * torch.randn(3, 4, 17, 12), torch.randint(0, 4, (3, 1, 17, 12), dtype=torch.uint8)
    label[1].clamp_max_(2)
    if channels_last:
        logits = logits.to(memory_format=torch.channels_last)
    losses, grads = [], []
    for loss in (DiceCE(batch), reference):
        z = logits.clone().requires_grad_()
        losses.append(loss(z, label))
        grads.append(torch.autograd.grad(losses[-1], z)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-8)


def test_supervised_loss_per_image() -> None:
    logits, label, _ = example()
    each = [Objective(UNet()).supervised_loss(logits[b : b + 1], label[b : b + 1]) for b in range(3)]
    loss = Objective(UNet(), per_image_dice=True).supervised_loss(logits, label)
    torch.testing.assert_close(loss, torch.stack(each).mean())


def test_pseudo_label_is_the_largest_probability_cut_from_the_graph() -> None:
    logits = torch.randn(2, 4, 3, 5).requires_grad_()
    target = pseudo_label(logits.softmax(1))
    assert not target.confidence.requires_grad
    for b in range(2):
        for y in range(3):
            for x in range(5):
                p = probability(logits[b, :, y, x].detach())
                assert float(target.confidence[b, y, x]) == pytest.approx(max(p), abs=1e-6)
                assert int(target.label[b, y, x]) == p.index(max(p))


def test_coverage_counts_pixels_that_pass() -> None:
    label = torch.tensor([[[0, 0, 1], [2, 1, 0]]])
    confidence = torch.tensor([[[0.95, 0.2, 0.99], [0.949, 0.5, 1.0]]])
    assert {k: v.item() for k, v in coverage("x", PseudoLabel(label, confidence), 0.95).items()} == pytest.approx(
        {"coverage_x": 3 / 6, "coverage_x_foreground": 1 / 3}
    )
    nothing = coverage("x", PseudoLabel(torch.zeros_like(label), confidence), 0.95)
    assert nothing["coverage_x_foreground"].item() == 0
