"""DiffRect: each term against a plain reading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.methods.diffrect import contrasted_label
from scripts.views import StrongView, WeakView
from tests.methods.common import build, calls, make_batch, run, supervised_loss, values

PLAIN = {"weak": WeakView("none"), "strong": StrongView(cutmix=0.0)}


def loss(logits: Tensor, label: Tensor) -> float:
    return float(supervised_loss(logits, label).detach())


def recorded(objective: Any) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """(Arguments, result) of every denoising step and of every sampling."""
    steps: list[tuple[Any, ...]] = []
    samples: list[tuple[Any, ...]] = []
    objective.rectifier.register_forward_hook(lambda _, x, y: steps.append((x, y)))
    sample = objective.rectifier.sample

    def kept(*arguments: Tensor) -> Tensor:
        samples.append((arguments, sample(*arguments)))
        result: Tensor = samples[-1][1]
        return result

    objective.rectifier.sample = kept
    return steps, samples


def test_contrasted_label_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    probabilities = torch.randn(2, 3, 5, 4).softmax(1)
    found = contrasted_label(probabilities, 0.8)
    for b in range(2):
        for y in range(5):
            for x in range(4):
                p = probabilities[b, :, y, x].tolist()
                expected = p.index(max(p)) if (max(p) - min(p)) / max(p) > 0.8 else 0
                assert int(found[b, y, x]) == expected
    assert (found != probabilities.argmax(1)).any()


def test_against_its_equations() -> None:
    objective = build("diffrect", **PLAIN)
    batch = make_batch()
    passes = calls(objective.network)
    steps, samples = recorded(objective)
    found = values(run(objective, batch))
    label = batch["label"][:, 0].long()
    (weak, weak_logits), (strong, strong_logits) = passes
    torch.testing.assert_close(weak, torch.cat([batch["image"], batch["unlabeled"]]))
    weak_label, strong_label = (contrasted_label(z.softmax(1), 0.8) for z in (weak_logits, strong_logits))
    assert found["loss_supervised"] == pytest.approx(loss(weak_logits[:2], label), rel=1e-5)
    assert found["loss_decoder"] == pytest.approx(loss(strong_logits[2:], weak_label[2:]), rel=1e-5)

    (first, (logits, latent)), (second, (again, latent_again)) = steps
    for arguments, expected in (
        (first, (weak, weak_label, torch.cat([label, weak_label[2:]]))),
        (second, (strong, strong_label, weak_label)),
    ):
        image, start, _, end = arguments
        for a, b in zip((image, start, end), expected, strict=True):
            assert torch.equal(a, b)
    rectified = contrasted_label(logits.detach().softmax(1), 0.8)
    assert found["loss_rectifier_supervised"] == pytest.approx(loss(logits[:2], label), rel=1e-5)
    assert found["loss_rectifier_consistency"] == pytest.approx(loss(again[2:], rectified[2:]), rel=1e-5)
    assert found["loss_latent"] == pytest.approx(float(latent.detach()))

    ((arguments, sampled),) = samples
    assert torch.equal(arguments[0], batch["unlabeled"])
    assert torch.equal(arguments[1], weak_label[2:])
    target = contrasted_label(sampled.softmax(1), 0.8)
    assert found["loss_rectification"] == pytest.approx(loss(weak_logits[2:], target), rel=1e-5)

    weight = 0.1 * float(torch.exp(torch.tensor(-5 * 0.7**2)))
    total = found["loss_supervised"] + found["loss_rectifier_supervised"] + found["loss_latent"]
    total += weight * (found["loss_decoder"] + found["loss_rectifier_consistency"] + float(latent_again.detach()))
    assert found["loss"] == pytest.approx(total + found["loss_rectification"], rel=1e-5)


def test_the_guidance_is_the_dice_loss_between_start_and_end() -> None:
    objective = build("diffrect")
    a, b = torch.randint(0, 4, (2, 6, 6)), torch.randint(0, 3, (2, 6, 6))
    dice = []
    for c in range(4):
        same, size = int(((a == c) & (b == c)).sum()), int((a == c).sum() + (b == c).sum())
        dice.append(2 * same / size if size else 1.0)
    assert float(objective.hard_dice(a, b)) == pytest.approx(1 - sum(dice) / 4, abs=1e-5)
    assert float(objective.hard_dice(a, a)) == pytest.approx(0.0, abs=1e-6)


def test_the_network_learns_from_its_own_terms_alone() -> None:
    objective = build("diffrect", **PLAIN)
    losses = run(objective)
    for name in losses.keys() - {"loss"}:
        objective.zero_grad()
        losses[name].backward(retain_graph=True)
        network = objective.network.head.weight.grad is not None
        rectifier = objective.rectifier.autoencoder.encoder[0][0].weight.grad is not None
        assert (network, rectifier) == ((False, True) if "rectifier" in name or "latent" in name else (True, False))


def test_rectification_begins_after_the_warm_up() -> None:
    objective = build("diffrect", warm_up=0.3)
    for iteration in (29, 30):
        objective.iteration = iteration
        assert ("loss_rectification" in run(objective)) is (iteration >= 30)


@torch.no_grad()
def test_pseudo_labels() -> None:
    objective = build("diffrect", **PLAIN).eval()
    views = objective.weak_views(make_batch())
    _, samples = recorded(objective)
    found = objective.pseudo_labels(views)
    assert list(found) == ["decoder", "rectified"]
    p = objective.network(views.unlabeled).softmax(1)
    assert torch.equal(found["decoder"].label, contrasted_label(p, 0.8))
    torch.testing.assert_close(found["decoder"].confidence, p.amax(1))
    assert torch.equal(found["rectified"].label, contrasted_label(samples[0][1].softmax(1), 0.8))


@pytest.mark.parametrize("option", ["contrast", "warm_up"])
def test_shares_are_checked(option: str) -> None:
    with pytest.raises(ValueError, match=option):
        build("diffrect", **{option: 1.5})
