"""Objectives that train more than the deployed network: decoders, heads, a discriminator, a Transformer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from scripts.methods import URPC, CrossTeaching
from scripts.methods.perturbations import feature_dropout, feature_noise
from scripts.methods.urpc import rectified_consistency
from scripts.networks import Discriminator, SwinUNet, UNet
from scripts.views import WeakView
from tests.methods.common import build, calls, make_batch, run, supervised_loss, thin_transformer, values

HYBRID = ("cross_teaching", "s4cvnet")
NAMES = (*HYBRID, "adversarial", "cross_consistency_training", "urpc")


def dice(p: Tensor, label: Tensor) -> float:
    """Mean over the classes of one minus Dice with squared sums over the batch."""
    total = 0.0
    for c in range(p.shape[1]):
        q, t = p[:, c].detach(), (label == c).float()
        total += 1 - 2 * float((q * t).sum()) / float((q * q).sum() + t.sum())
    return total / p.shape[1]


def supervised(logits: Tensor, batch: dict[str, Tensor]) -> float:
    return float(supervised_loss(logits.detach(), batch["label"][:, 0]))


# --- properties of all of them


@pytest.mark.parametrize("name", NAMES)
def test_the_consistency_ramps_up(name: str) -> None:
    objective = build(name)
    for iteration, ramp in ((0, math.exp(-5)), (30, math.exp(-5 * 0.7**2)), (100, 1.0)):
        objective.iteration = iteration
        found = values(run(objective))
        unsupervised = found["loss_consistency"]
        if name == "s4cvnet":
            ramp = iteration / 100
            unsupervised = 7 * unsupervised + (found["loss_guidance"] if iteration >= 100 / 30 else 0.0)
        assert found["loss_consistency"] > 0
        assert found["loss"] == pytest.approx(found["loss_supervised"] + 0.1 * ramp * unsupervised, rel=1e-6)


# --- perturbations


def test_noise_is_relative_bounded_and_the_same_for_all_images() -> None:
    features = torch.rand(3, 4, 8, 8) + 1
    torch.manual_seed(0)
    ratio = feature_noise(features, 0.3) / features
    assert ratio.min() >= 0.7
    assert ratio.max() <= 1.3
    assert ratio.std() > 0.1
    torch.testing.assert_close(ratio[1], ratio[0])
    torch.testing.assert_close(ratio[2], ratio[0])


def test_feature_dropout_erases_the_most_active_places_of_each_image() -> None:
    features = torch.rand(3, 4, 6, 6)
    features[2] -= 2  # an image without a positive mean keeps the values below the share of its maximum
    torch.manual_seed(0)
    share = 0.7 + 0.2 * float(torch.rand(()))
    torch.manual_seed(0)
    found = feature_dropout(features)
    for b in range(3):
        means = [[float(features[b, :, y, x].mean()) for x in range(6)] for y in range(6)]
        limit = share * max(map(max, means))
        for y in range(6):
            for x in range(6):
                expected = features[b, :, y, x] if means[y][x] < limit else torch.zeros(4)
                assert torch.equal(found[b, :, y, x], expected)
    assert (found[0] == 0).any()
    assert (found[0] != 0).any()


# --- cross-consistency training


def test_cct_against_its_equations() -> None:
    objective = build("cross_consistency_training", weak=WeakView("none"))
    batch = make_batch()
    images = torch.cat([batch["image"], batch["unlabeled"]])
    reference = copy.deepcopy(objective.network)
    features = reference.encode(images)
    main = reference.decode(features).detach()
    seen = [calls(decoder) for decoder in objective.auxiliary]
    found = values(run(objective, batch))

    logits = [main, *(s[0][1] for s in seen)]
    assert found["loss_supervised"] == pytest.approx(sum(supervised(z[:2], batch) for z in logits) / 4, rel=1e-5)
    errors = [float(((z[2:].softmax(1) - main[2:].softmax(1)) ** 2).mean()) for z in logits[1:]]
    assert found["loss_consistency"] == pytest.approx(sum(errors) / 3, rel=1e-4)

    noisy, dropped, erased = ([f.detach() for f in s[0][0]] for s in seen)
    for f, a, b, c in zip(features, noisy, dropped, erased, strict=True):
        assert ((a - f).abs() <= 0.3001 * f.abs() + 1e-6).all()
        assert not torch.equal(a, f)
        zero = b == 0
        assert 0.2 < float(zero.float().mean()) < 0.4
        kept_share = 1 - round(0.3 * 256) / 256  # a probability of the dropout is a multiple of 1/256
        torch.testing.assert_close(b[~zero], (f / kept_share)[~zero])
        kept = (c != 0).any(dim=1, keepdim=True)
        torch.testing.assert_close(c, f * kept)
        assert not kept.all()


def test_cct_has_gradients_on_both_sides() -> None:
    objective = build("cross_consistency_training")
    run(objective)["loss_consistency"].backward()
    assert objective.network.head.weight.grad.any()
    assert all(decoder.head.weight.grad.any() for decoder in objective.auxiliary)


# --- URPC


def test_rectified_consistency_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(3, 2, 4, 2, 3)
    p = logits.double().softmax(dim=2)
    total = 0.0
    for s in range(3):
        distances, weights, divergences = [], [], []
        for b in range(2):
            for y in range(2):
                for x in range(3):
                    mean = [sum(float(p[k, b, c, y, x]) for k in range(3)) / 3 for c in range(4)]
                    own = [float(p[s, b, c, y, x]) for c in range(4)]
                    divergence = sum(m * math.log(m / q) for m, q in zip(mean, own, strict=True))
                    weight = math.exp(-divergence)
                    distances += [weight * (m - q) ** 2 for m, q in zip(mean, own, strict=True)]
                    weights.append(weight)
                    divergences.append(divergence)
        rectified = (sum(distances) / len(distances)) / (sum(weights) / len(weights))
        total += rectified + sum(divergences) / len(divergences)
    assert float(rectified_consistency(logits)) == pytest.approx(total / 3, rel=1e-5)


def test_rectified_consistency_of_equal_and_of_extreme_scales() -> None:
    one = torch.randn(1, 2, 4, 3, 3)
    assert float(rectified_consistency(one.expand(4, -1, -1, -1, -1))) == pytest.approx(0.0, abs=1e-6)
    extreme = torch.zeros(2, 1, 3, 1, 1)
    extreme[0, 0, 0] = extreme[1, 0, 1] = 500.0  # probabilities that are 0 in float32
    extreme.requires_grad_()
    loss = rectified_consistency(extreme)
    loss.backward()
    assert loss.isfinite()
    assert extreme.grad is not None
    assert extreme.grad.isfinite().all()


def test_urpc_against_its_equations() -> None:
    objective = build("urpc", weak=WeakView("none"))
    batch = make_batch()
    images = torch.cat([batch["image"], batch["unlabeled"]])
    reference = copy.deepcopy(objective.network)
    levels = reference.decode_levels(reference.encode(images))
    seen = [calls(head) for head in objective.heads]
    found = values(run(objective, batch))

    pyramid = [reference.head(levels[-1])]
    for (_, logits), factor in zip((s[0] for s in seen), (8, 4, 2), strict=True):
        pyramid.append(logits.repeat_interleave(factor, -2).repeat_interleave(factor, -1))
    assert found["loss_supervised"] == pytest.approx(sum(supervised(z[:2], batch) for z in pyramid) / 4, rel=1e-5)
    expected = rectified_consistency(torch.stack([z[2:] for z in pyramid])).detach()
    assert found["loss_consistency"] == pytest.approx(float(expected), rel=1e-4)

    dropped, erased, noisy = (s[0][0].detach() for s in seen)
    torch.testing.assert_close(dropped[dropped != 0], (levels[0] / 0.5)[dropped != 0])
    assert 0.3 < float((dropped == 0).float().mean()) < 0.7
    torch.testing.assert_close(erased, levels[1] * (erased != 0).any(dim=1, keepdim=True))
    assert ((noisy - levels[2]).abs() <= 0.3001 * levels[2].abs() + 1e-6).all()


def test_urpc_wants_five_levels() -> None:
    with pytest.raises(ValueError, match="five levels"):
        URPC(network=UNet(channels=(4, 6, 8), dropout=0.0))


# --- DAN


def test_discriminator() -> None:
    assert sum(p.numel() for p in Discriminator().parameters()) == 2_762_754
    discriminator = Discriminator(3, 2, 4).eval()
    probabilities, image = torch.rand(2, 2, 224, 224), torch.rand(2, 3, 224, 224)
    x = discriminator.from_segmentation(probabilities) + discriminator.from_image(image)
    for layer in discriminator.body:
        x = layer(x)
    pooled = torch.stack([x[..., i : i + 7, j : j + 7].mean(dim=(-2, -1)) for i in (0, 7) for j in (0, 7)], dim=-1)
    expected = discriminator.classifier(pooled.flatten(1))
    torch.testing.assert_close(discriminator(probabilities, image), expected)
    assert discriminator(torch.rand(1, 2, 16, 20), torch.rand(1, 3, 16, 20)).shape == (1, 2)


def test_the_network_learns_to_be_classified_as_labelled() -> None:
    objective = build("adversarial", weak=WeakView("none"))
    batch = make_batch()
    reference, judge = copy.deepcopy(objective.network), copy.deepcopy(objective.discriminator).eval()
    logits = reference(torch.cat([batch["image"], batch["unlabeled"]]))
    losses = run(objective, batch)
    found = values(losses)
    assert found["loss_supervised"] == pytest.approx(supervised(logits[:2], batch), rel=1e-5)
    verdict = judge(logits[2:].softmax(1), batch["unlabeled"]).softmax(1)
    expected = -verdict[:, 1].log().mean()
    assert found["loss_consistency"] == pytest.approx(float(expected.detach()), rel=1e-5)
    expected.backward()
    losses["loss_consistency"].backward()
    for a, b in zip(objective.network.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
    assert objective.network.head.weight.grad.any()


def test_the_discriminator_learns_by_itself_and_after_the_step() -> None:
    objective = build("adversarial", weak=WeakView("none"), learning_rate=0.01)
    batch = make_batch()
    main = torch.optim.SGD(objective.parameters(), lr=0.1, weight_decay=0.1)
    predictions = copy.deepcopy(objective.network)(torch.cat([batch["image"], batch["unlabeled"]])).softmax(1).detach()
    before = copy.deepcopy(objective.discriminator)
    run(objective, batch)["loss"].backward()
    main.step()
    for a, b in zip(objective.discriminator.parameters(), before.parameters(), strict=True):
        assert torch.equal(a, b)  # weight decay or not
    network = copy.deepcopy(objective.network.state_dict())

    torch.manual_seed(5)
    objective.after_step()
    torch.manual_seed(5)
    before.requires_grad_(True).train()
    logits = before(predictions, torch.cat([batch["image"], batch["unlabeled"]])).log_softmax(1)
    (-(logits[:2, 1].sum() + logits[2:, 0].sum()) / 5).backward()
    for a, b in zip(objective.discriminator.parameters(), before.parameters(), strict=True):
        assert b.grad is not None
        assert b.grad.any()
        # Adam's first step, its moments corrected: g / (|g| + eps)
        torch.testing.assert_close(a, b - 0.01 * b.grad / (b.grad.abs() + 1e-8), rtol=1e-4, atol=1e-4)
        assert a.grad is None
        assert not a.requires_grad
    assert all(torch.equal(network[key], value) for key, value in objective.network.state_dict().items())

    after = copy.deepcopy(objective.discriminator.state_dict())
    objective.after_step()  # without unlabeled images D has no input
    assert all(torch.equal(after[key], value) for key, value in objective.discriminator.state_dict().items())


def test_the_discriminators_gradients_are_averaged_over_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(other: Callable[[Tensor], None] | None) -> list[Tensor]:
        objective = build("adversarial")
        if other is not None:
            monkeypatch.setattr(dist, "is_initialized", lambda: True)
            monkeypatch.setattr(dist, "get_world_size", lambda: 2)
            monkeypatch.setattr(dist, "all_reduce", other)
        run(objective)
        objective.after_step()
        return [state["exp_avg"] for state in objective.optimizer.state_dict()["state"].values()]

    alone = step(None)
    assert len(alone) == 12
    for a, b in zip(
        alone, step(lambda gradient: gradient.mul_(2)), strict=True
    ):  # the other process has the same gradient
        torch.testing.assert_close(a, b)
    for a, b in zip(alone, step(lambda gradient: None), strict=True):  # the other process has no gradient
        torch.testing.assert_close(a / 2, b)


# --- cross teaching and S4CVnet


def branches(objective: CrossTeaching, batch: dict[str, Tensor]) -> tuple[UNet, SwinUNet, Tensor, Tensor]:
    cnn, transformer = copy.deepcopy(objective.network), copy.deepcopy(objective.transformer)
    images = torch.cat([batch["image"], batch["unlabeled"]])
    return cnn, transformer, cnn(images), transformer(images)  # type: ignore[return-value]


@pytest.mark.parametrize("name", HYBRID)
def test_branches_teach_each_other(name: str) -> None:
    objective = build(name, weak=WeakView("none"))
    batch = make_batch()
    cnn, transformer, z1, z2 = branches(objective, batch)
    losses = run(objective, batch)
    found = values(losses)
    assert found["loss_supervised"] == pytest.approx(supervised(z1[:2], batch) + supervised(z2[:2], batch), rel=1e-5)
    p1, p2 = z1[2:].softmax(1), z2[2:].softmax(1)
    a1, a2 = p1.argmax(1), p2.argmax(1)
    assert len(a1.unique()) > 1
    assert not torch.equal(a1, a2)
    assert found["loss_consistency"] == pytest.approx(dice(p1, a2) + dice(p2, a1), rel=1e-4)

    # Each branch learns from its own term alone.
    losses["loss_consistency"].backward()
    objective.dice(z1[2:], a2).backward()
    objective.dice(z2[2:], a1).backward()
    for mine, plain in ((objective.network, cnn), (objective.transformer, transformer)):
        for a, b in zip(mine.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", HYBRID)
@torch.no_grad()
def test_pseudo_labels_of_both_branches(name: str) -> None:
    objective = build(name).eval()
    views = objective.weak_views(make_batch())
    found = objective.pseudo_labels(views)
    assert list(found) == ["decoder", "transformer"]
    for kind, network in (("decoder", objective.network), ("transformer", objective.transformer)):
        confidence, label = network(views.unlabeled).softmax(1).max(1)
        assert torch.equal(found[kind].label, label)
        torch.testing.assert_close(found[kind].confidence, confidence)


def test_the_guide_against_its_equations() -> None:
    objective = build("s4cvnet", weak=WeakView("none"), transformer=thin_transformer(drop_path=0.0))
    batch = make_batch()
    _, _, z1, z2 = branches(objective, batch)
    guide = copy.deepcopy(objective.guide.module).eval()
    seen = calls(objective.guide)
    losses = run(objective, batch)
    noise = seen[0][0] - batch["unlabeled"]
    assert 0.08 < float(noise.std()) < 0.1
    assert float(noise.abs().max()) <= 0.2 + 1e-6
    with torch.no_grad():
        q = guide(seen[0][0]).softmax(1)
        expected = float(((z1[2:].softmax(1) - q) ** 2).mean() + ((z2[2:].softmax(1) - q) ** 2).mean())
    assert values(losses)["loss_guidance"] == pytest.approx(expected, rel=1e-4)
    losses["loss_guidance"].backward()
    assert objective.network.head.weight.grad.any()
    assert objective.transformer.head.weight.grad.any()
    assert all(p.grad is None for p in objective.guide.parameters())


def test_the_guide_has_no_stochastic_depth() -> None:
    torch.manual_seed(0)
    objective = build("s4cvnet", transformer=thin_transformer(drop_path=0.9), noise=0.0).train()
    image = make_batch()["unlabeled"]
    assert not torch.equal(objective.transformer(image), objective.transformer(image))
    assert torch.equal(objective.guide_target(image), objective.guide_target(image))


def test_the_guide_is_the_moving_average_of_the_transformer() -> None:
    objective = build("s4cvnet", decay=0.9)
    history = []
    for step in range(4):
        nn.init.constant_(objective.transformer.head.weight, float(step))
        objective.after_step()
        history.append(float(step))
    expected = 0.9**3 * history[0] + sum(0.1 * 0.9 ** (3 - i) * history[i] for i in (1, 2, 3))
    torch.testing.assert_close(objective.guide.module.head.weight, torch.full((4, 6, 1, 1), expected))


def test_noise_is_checked() -> None:
    with pytest.raises(ValueError, match="noise"):
        build("s4cvnet", noise=-0.1)
