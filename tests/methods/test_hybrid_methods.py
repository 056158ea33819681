"""MedFCT and CnT-B: each term against a plain reading of its description."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.methods.cnt_b import Geometry, class_geometry, learn_geometry, learn_pixels
from scripts.similarity import class_means
from scripts.views import WeakView
from tests.methods.common import build, make_batch, run, supervised_loss, values

WEIGHT = 0.1 * math.exp(-5 * 0.7**2)  # w(t) at 30 % of the training


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


def mean_features(features: Tensor, p: Tensor) -> list[list[Tensor]]:
    """By image and class, pixel by pixel; features and probabilities of one size."""
    found = []
    for f, share in zip(features, p, strict=True):
        pixels = [(y, x) for y in range(f.shape[1]) for x in range(f.shape[2])]
        found.append([sum(c[y, x] * f[:, y, x] for y, x in pixels) / c.sum() for c in share])
    return found


def small(p: Tensor, size: tuple[int, int]) -> Tensor:
    """Means over cells; the size divides."""
    rows, columns = p.shape[-2] // size[0], p.shape[-1] // size[1]
    return F.avg_pool2d(p, (rows, columns))


def test_class_means_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    features, p = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 8, 10).softmax(1)
    found = class_means(features, p)
    for image, expected in zip(found, mean_features(features, small(p, (4, 5))), strict=True):
        torch.testing.assert_close(image, torch.stack(expected))


def test_medfct_against_its_description() -> None:
    objective = build("medfct", weak=WeakView("none"), noise=0.0)
    batch = make_batch()
    found = values(run(objective, batch))
    with torch.no_grad():
        students = objective.network.branches(torch.cat([batch["image"], batch["unlabeled"]]))
        teachers = objective.teacher.module.branches(batch["unlabeled"])
    label = batch["label"][:, 0].long()
    assert found["loss_supervised"] == pytest.approx(
        sum(float(supervised_loss(s.logits[:2], label)) for s in students), rel=1e-5
    )
    pixel, feature, of_class = [], [], []
    for s, t in zip(students, teachers, strict=True):
        p, q = s.logits[2:].softmax(1), t.logits.softmax(1)
        pixel.append(float(((p - q) ** 2).mean()))
        f, g = s.features[2:], t.features
        places = [(b, y, x) for b in range(3) for y in range(f.shape[2]) for x in range(f.shape[3])]
        feature.append(1 - sum(cosine(f[b, :, y, x], g[b, :, y, x]) for b, y, x in places) / len(places))
        size = (f.shape[2], f.shape[3])
        means = mean_features(f, small(p, size)), mean_features(g, small(q, size))
        cosines = [cosine(a, b) for one, other in zip(*means, strict=True) for a, b in zip(one, other, strict=True)]
        of_class.append(1 - sum(cosines) / len(cosines))
    expected = [sum(level) / 2 for level in (pixel, feature, of_class)]
    names = ("loss_pixel", "loss_feature", "loss_class")
    assert [found[name] for name in names] == pytest.approx(expected, rel=1e-4)
    assert found["loss_consistency"] == pytest.approx(sum(expected), rel=1e-4)
    assert found["loss"] == pytest.approx(found["loss_supervised"] + WEIGHT * sum(expected), rel=1e-5)


def test_medfct_teaches_under_noise_and_without_a_gradient() -> None:
    objective = build("medfct", noise=0.5)
    image = make_batch()["unlabeled"]
    first, second = objective.teacher_branches(image), objective.teacher_branches(image)
    for one, other in zip(first, second, strict=True):
        assert not torch.equal(one.logits, other.logits)
        assert not one.logits.requires_grad


def entropy(p: Tensor) -> float:
    return -sum(float(x) * math.log(float(x)) for x in p) / math.log(len(p))


def test_cnt_b_learns_pixels_from_the_surer_side() -> None:
    torch.manual_seed(0)
    learner, teacher = (3 * torch.randn(2, 4, 5, 6) for _ in range(2))
    total, taught = 0.0, 0
    for b in range(2):
        for y in range(5):
            for x in range(6):
                p, q = learner[b, :, y, x].softmax(0), teacher[b, :, y, x].softmax(0)
                if entropy(q) < entropy(p):
                    total -= (1 - entropy(q)) * math.log(float(p[int(q.argmax())]))
                    taught += 1
    assert 0 < taught < 60
    assert float(learn_pixels(learner, teacher)) == pytest.approx(total / 60, rel=1e-4)
    learner.requires_grad_(True)
    teacher.requires_grad_(True)
    learn_pixels(learner, teacher).backward()
    assert learner.grad is not None
    assert teacher.grad is None


def test_cnt_b_geometry_pixel_by_pixel() -> None:
    torch.manual_seed(0)
    features, p = torch.randn(2, 3, 4, 5), torch.randn(2, 4, 4, 5).softmax(1)
    found = class_geometry(features, p)
    for b, means in enumerate(mean_features(features, p)):
        for c, mean in enumerate(means):
            for d, other in enumerate(means):
                assert float(found.cosines[b, c, d]) == pytest.approx(cosine(mean, other), abs=1e-5)
            share = p[b, c] / p[b, c].sum()
            near = sum(float(share[y, x]) * cosine(features[b, :, y, x], mean) for y in range(4) for x in range(5))
            assert float(found.spread[b, c]) == pytest.approx(1 - near, abs=1e-5)


def test_cnt_b_learns_the_geometry_of_the_surer_side() -> None:
    torch.manual_seed(0)
    sides = [Geometry(torch.rand(2, 3, 3, requires_grad=True), torch.rand(2, 3, requires_grad=True)) for _ in range(2)]
    learner, teacher = sides
    total, count = 0.0, 0
    for b in range(2):
        for c in range(3):
            for d in range(3):
                own, other = (float((s.spread[b, c] + s.spread[b, d]).detach()) for s in sides)
                if other < own:
                    total += float((learner.cosines[b, c, d] - teacher.cosines[b, c, d]).detach()) ** 2
                    count += 1
    assert 0 < count < 18
    loss = learn_geometry(learner, teacher)
    assert float(loss.detach()) == pytest.approx(total / 18, rel=1e-5)
    loss.backward()
    assert learner.cosines.grad is not None
    assert teacher.cosines.grad is None
    assert learner.spread.grad is None


def test_cnt_b_adds_both_sides() -> None:
    objective: Any = build("cnt_b", weak=WeakView("none"))
    batch = make_batch()
    found = values(run(objective, batch))
    label = batch["label"][:, 0].long()
    with torch.no_grad():
        both = torch.cat([batch["image"], batch["unlabeled"]])
        features = objective.network.decode_levels(objective.network.encode(both))[-1]
        outputs = (objective.network.head(features), features), objective.transformer.logits_and_features(both)
    (z_1, f_1), (z_2, f_2) = outputs
    supervised = float(supervised_loss(z_1[:2], label) + supervised_loss(z_2[:2], label))
    z_1, z_2, f_1, f_2 = z_1[2:], z_2[2:], f_1[2:], f_2[2:]
    sides = class_geometry(f_1, z_1.softmax(1)), class_geometry(f_2, z_2.softmax(1))
    pixel = float(learn_pixels(z_1, z_2) + learn_pixels(z_2, z_1))
    feature = float(learn_geometry(*sides) + learn_geometry(sides[1], sides[0]))
    assert pixel > 0 < feature
    assert found == pytest.approx(
        {
            "loss": supervised + WEIGHT * (pixel + feature),
            "loss_supervised": supervised,
            "loss_consistency": pixel + feature,
            "loss_pixel": pixel,
            "loss_feature": feature,
        },
        rel=1e-4,
    )
