from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.networks import attention
from scripts.similarity import (
    Prototypes,
    agreement,
    cross_logits,
    majority_labels,
    nearest_divisor,
    query_similarity,
    refine_by_affinity,
    region_prototypes,
)
from tests.memory import LargestTensor


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors; 0 if one of them is zero."""
    norms = float(a.double().norm() * b.double().norm())
    return float(a.double() @ b.double()) / norms if norms > 0 else 0.0


# --- within an image (Eqs. 4-5)


def affinity(features: Tensor, temperature: float) -> Tensor:
    """M of one image ``[D, h, w]``, entry by entry."""
    pixels = features.flatten(1).T
    n = len(pixels)
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        row = [math.exp(cosine(pixels[i], pixels[j]) / temperature) for j in range(n)]
        matrix[i] = torch.tensor(row, dtype=torch.float64) / sum(row)
    return matrix


def refined_probabilities(logits: Tensor, features: Tensor, temperature: float, space: str) -> Tensor:
    """p^in by the matrix, image by image."""
    out = []
    for z, f in zip(logits.double(), features, strict=True):
        matrix = affinity(f, temperature)
        z = z.flatten(1).T
        if space == "logit":
            p = (z + matrix @ z).softmax(1)
        else:
            p = (z.softmax(1) + matrix @ z.softmax(1)) / 2
        out.append(p.T.reshape(logits.shape[1:]))
    return torch.stack(out).float()


@pytest.mark.parametrize("space", ["logit", "probability"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize(("classes", "width"), [(4, 8), (2, 3), (8, 8), (5, 3)])
def test_refinement_equals_the_explicit_matrix(space: str, temperature: float, classes: int, width: int) -> None:
    torch.manual_seed(0)
    logits, features = 3 * torch.randn(2, classes, 5, 4), torch.randn(2, width, 5, 4).relu()
    features[0, :, 2, 3] = 0  # a pixel with a zero feature: similarity 0 to all, itself included
    found = refine_by_affinity(logits, features, temperature, space)
    assert found.dtype == torch.float32
    expected = refined_probabilities(logits, features, temperature, space)
    torch.testing.assert_close(found.softmax(1), expected, rtol=1e-4, atol=1e-5)


def test_refined_logits_are_the_sum_and_not_only_right_up_to_a_constant() -> None:
    torch.manual_seed(0)
    logits, features = torch.randn(1, 3, 3, 4), torch.rand(1, 6, 3, 4)
    z = logits[0].flatten(1).T.double()
    expected = (z + affinity(features[0], 0.1) @ z).T.reshape(1, 3, 3, 4).float()
    torch.testing.assert_close(refine_by_affinity(logits, features, 0.1), expected, rtol=1e-4, atol=1e-5)


def test_rows_of_the_affinity_sum_to_one() -> None:
    features = torch.randn(2, 8, 6, 5)
    logits = torch.tensor([1.0, -2.0, 0.5])[None, :, None, None].expand(2, 3, 6, 5)
    torch.testing.assert_close(refine_by_affinity(logits, features, 0.1), 2 * logits)
    refined = refine_by_affinity(logits, features, 0.1, "probability").softmax(1)
    torch.testing.assert_close(refined, logits.softmax(1))


def test_refinement_of_an_image_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    logits, features = torch.randn(3, 4, 4, 4), torch.randn(3, 8, 4, 4)
    together = refine_by_affinity(logits, features)
    torch.testing.assert_close(together[1:2], refine_by_affinity(logits[1:2], features[1:2]))


@pytest.mark.parametrize("space", ["logit", "probability"])
@pytest.mark.parametrize(("classes", "width"), [(4, 6), (5, 3)])
def test_gradient_of_the_refinement(space: str, classes: int, width: int) -> None:
    torch.manual_seed(0)
    logits, features = torch.randn(2, classes, 4, 5), torch.rand(2, width, 4, 5) + 0.05
    weight = torch.randn(2, classes, 4, 5)

    def plain(logits: Tensor, features: Tensor) -> Tensor:
        q = features / features.norm(dim=1, keepdim=True)
        matrix = (torch.einsum("bdhw,bdij->bhwij", q, q) / 0.1).flatten(3).softmax(-1).view(2, 4, 5, 4, 5)
        value = logits if space == "logit" else logits.softmax(1)
        value = value + torch.einsum("bhwij,bcij->bchw", matrix, value)
        return value.softmax(1) if space == "logit" else value / 2

    def gradients(compute: Any, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [t.to(dtype).requires_grad_() for t in (logits, features)]
        return torch.autograd.grad((compute(*leaves) * weight.to(dtype)).sum(), leaves)

    found = gradients(lambda z, f: refine_by_affinity(z, f, 0.1, space).softmax(1), torch.float32)
    for a, b in zip(found, gradients(plain, torch.float64), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=1e-5)


def test_gradient_of_the_refinement_is_finite_at_a_zero_feature() -> None:
    logits, features = torch.randn(1, 3, 4, 4).requires_grad_(), torch.zeros(1, 6, 4, 4)
    features[..., 1:] = torch.rand(1, 6, 4, 3)
    features.requires_grad_()
    refine_by_affinity(logits, features).softmax(1)[:, 0].sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


@pytest.mark.parametrize("space", ["logit", "probability"])
def test_refinement_under_bf16_autocast(space: str) -> None:
    torch.manual_seed(0)
    logits, features = torch.randn(1, 3, 4, 4), torch.rand(1, 8, 4, 4)
    exact = refine_by_affinity(logits, features, 0.1, space).softmax(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = refine_by_affinity(logits.bfloat16(), features.bfloat16(), 0.1, space)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.softmax(1), exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("space", ["logit", "probability"])
@pytest.mark.parametrize("chunk", [1000, 24**4])
def test_the_affinity_is_stored_in_chunks_only(space: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "CHUNK", chunk)
    side, width = 24, 16
    logits = torch.randn(1, 4, side, side, requires_grad=True)
    features = torch.rand(1, width, side, side, requires_grad=True)
    with LargestTensor() as record:
        refine_by_affinity(logits, features, 0.1, space).sum().backward()
    assert features.grad is not None
    assert record.largest == (side**4 if chunk == side**4 else width * side**2)


def test_unknown_space_is_refused() -> None:
    with pytest.raises(ValueError, match="'logits'"):
        refine_by_affinity(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2), space="logits")


# --- across images (Eqs. 7-9)


@pytest.mark.parametrize(
    ("size", "wanted", "expected"),
    [
        (56, 4, 4),
        (56, 14, 14),
        (56, 1, 1),
        (56, 5, 4),
        (25, 4, 5),
        (23, 4, 1),
        (6, 4, 3),
        (4, 8, 4),
        (9, 6, 3),  # 3 and 9 are equally near
    ],
)
def test_nearest_divisor(size: int, wanted: int, expected: int) -> None:
    assert nearest_divisor(size, wanted) == expected


@pytest.mark.parametrize(("side", "small"), [((12, 16), (3, 4)), ((10, 13), (3, 4))])
def test_majority_of_each_cell(side: tuple[int, int], small: tuple[int, int]) -> None:
    labels = torch.randint(0, 5, (3, *side), generator=torch.Generator().manual_seed(0))
    found = majority_labels(labels.to(torch.uint8), small, 5)
    assert found.shape == (3, *small)
    for j in range(3):
        for y in range(small[0]):
            for x in range(small[1]):
                rows = slice(y * side[0] // small[0], -(-(y + 1) * side[0] // small[0]))
                columns = slice(x * side[1] // small[1], -(-(x + 1) * side[1] // small[1]))
                assert found[j, y, x] == labels[j, rows, columns].flatten().bincount(minlength=5).argmax()


def test_labels_and_logits_come_to_one_place_at_the_features_size() -> None:
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centres = 20 + 24 * torch.rand(50, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    discs = ((rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 15**2).float()

    def centroids(weight: Tensor) -> Tensor:
        places = torch.arange(16.0)
        ys, xs = (weight.sum(2) * places).sum(1), (weight.sum(1) * places).sum(1)
        return torch.stack([ys, xs]) / weight.sum((1, 2))

    small = F.interpolate(discs[:, None], size=(16, 16), mode="bilinear", align_corners=False)[:, 0]
    label = majority_labels(discs.long(), (16, 16), 2).float()
    assert (centroids(label) - centroids(small)).mean(dim=1).abs().max() < 0.02
    sampled = F.interpolate(discs[:, None], size=(16, 16), mode="nearest")[:, 0]
    assert (centroids(sampled) - centroids(small)).mean(dim=1).min() > 0.3, "what taking one pixel does"


def mean_or_none(vectors: list[Tensor]) -> Tensor | None:
    return torch.stack(vectors).mean(0) if vectors else None


def plain_prototypes(features: Tensor, labels: Tensor, classes: int, rows: int, columns: int) -> dict[Any, Tensor]:
    """``(image, row, column, class) -> vector``: the region's mean, else the image's, else the batch's."""
    images, _, height, width = features.shape
    rh, cw = height // rows, width // columns

    def pixels(c: int, js: range, ys: range, xs: range) -> list[Tensor]:
        return [features[j, :, y, x] for j in js for y in ys for x in xs if labels[j, y, x] == c]

    table = {}
    for c in range(classes):
        batch = mean_or_none(pixels(c, range(images), range(height), range(width)))
        for j in range(images):
            image = mean_or_none(pixels(c, range(j, j + 1), range(height), range(width)))
            for r in range(rows):
                for k in range(columns):
                    ys, xs = range(r * rh, (r + 1) * rh), range(k * cw, (k + 1) * cw)
                    region = mean_or_none(pixels(c, range(j, j + 1), ys, xs))
                    vector = region if region is not None else image if image is not None else batch
                    if vector is not None:
                        table[j, r, k, c] = vector
    return table


def labeled_batch(classes: int = 5) -> tuple[Tensor, Tensor]:
    """Three images, 6 x 8: class 2 in one region of two images, 3 in image 0 alone, 4 nowhere."""
    torch.manual_seed(0)
    features = torch.randn(3, 7, 6, 8)
    labels = torch.randint(0, 2, (3, 6, 8))
    labels[0, :2, :3] = 2
    labels[1, 4:, 5:] = 2
    labels[0, 3, 4] = 3
    return features, labels


@pytest.mark.parametrize(("regions", "rows", "columns"), [(1, 1, 1), (2, 2, 2), (3, 3, 2), (4, 3, 4), (99, 6, 8)])
def test_prototypes_equal_loops(regions: int, rows: int, columns: int) -> None:
    features, labels = labeled_batch()
    found = region_prototypes(features, labels, 5, regions)
    assert found.vectors.shape == (3, rows, columns, 5, 7)
    assert found.present.tolist() == [True, True, True, True, False]
    expected = torch.zeros_like(found.vectors)
    for (j, r, k, c), vector in plain_prototypes(features, labels, 5, rows, columns).items():
        expected[j, r, k, c] = vector
    torch.testing.assert_close(found.vectors, expected)


def test_prototypes_fall_back_in_order() -> None:
    features, labels = labeled_batch()
    vectors = region_prototypes(features, labels, 5, 2).vectors
    own = features[0, :, :2, :3].flatten(1).mean(1)
    other = features[1, :, 4:, 5:].flatten(1).mean(1)
    torch.testing.assert_close(vectors[0, 1, 1, 2], own)  # absent from the region: the image's mean
    torch.testing.assert_close(vectors[1, 0, 0, 2], other)
    torch.testing.assert_close(vectors[2, 0, 1, 2], (own + other) / 2)  # from the image: the batch's (6 pixels each)
    torch.testing.assert_close(vectors[2, 0, 0, 3], features[0, :, 3, 4])
    assert not vectors[..., 4, :].any()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_prototypes_take_labels_as_they_come(dtype: torch.dtype) -> None:
    features, labels = labeled_batch()
    found = region_prototypes(features, labels.to(dtype), 5, 2)
    torch.testing.assert_close(found.vectors, region_prototypes(features, labels, 5, 2).vectors)


def test_query_similarity_equals_loops() -> None:
    features, labels = labeled_batch()
    query = torch.randn(2, 7, 6, 8)
    query[1, :, 0, 0] = 0
    prototypes = region_prototypes(features, labels, 5, 2)
    table = plain_prototypes(features, labels, 5, 2, 2)
    found = query_similarity(query, prototypes)
    assert found.shape == (2, 3, 5, 6, 8)
    zero = torch.zeros(7)
    for b in range(2):
        for j in range(3):
            for c in range(5):
                expected = [
                    [cosine(query[b, :, y, x], table.get((j, y // 3, x // 4, c), zero)) for x in range(8)]
                    for y in range(6)
                ]
                torch.testing.assert_close(found[b, j, c], torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("excluding", [False, True])
def test_cross_prediction_equals_loops(temperature: float, excluding: bool) -> None:
    torch.manual_seed(0)
    m = torch.rand(2, 3, 4, 3, 2) * 2 - 1
    present = torch.tensor([True, True, False, True])
    exclude = torch.tensor([[True, False, False], [False, True, True]]) if excluding else None
    found = cross_logits(m, present, temperature, exclude).softmax(1)
    for b in range(2):
        seen = [j for j in range(3) if exclude is None or not exclude[b, j]]
        for y in range(3):
            for x in range(2):
                mass = [
                    sum(math.exp(float(m[b, j, c, y, x]) / temperature) for j in seen) if present[c] else 0.0
                    for c in range(4)
                ]
                expected = torch.tensor([v / sum(mass) for v in mass])
                torch.testing.assert_close(found[b, :, y, x], expected, rtol=1e-4, atol=1e-6)
    assert (found[:, 2] == 0).all()


@pytest.mark.parametrize(("classes", "largest"), [(4, 0.4754), (2, 0.7311)])
def test_at_temperature_one_nothing_is_confident(classes: int, largest: float) -> None:
    m = torch.zeros(1, 6, classes, 1, 1)
    m[:, :, 0] = 1  # the best case of cosines in [0, 1]
    present = torch.ones(classes, dtype=torch.bool)
    assert cross_logits(m, present, 1.0).softmax(1).max() == pytest.approx(largest, abs=1e-4)
    sampled = cross_logits(torch.rand(9, 6, classes, 8, 8), present, 1.0).softmax(1)
    assert sampled.max() < largest
    assert cross_logits(m, present, 0.05).softmax(1).max() > 0.999


@pytest.mark.parametrize("rate", [1.0, 1000.0])
def test_uncertainty_equals_loops(rate: float) -> None:
    torch.manual_seed(0)
    spread = 1.0 if rate == 1 else 0.05
    m = (0.5 + spread * (torch.rand(2, 3, 4, 2, 3, dtype=torch.float64) - 0.5)).float()
    present = torch.tensor([True, False, True, True])
    found = agreement(m, present, rate)
    assert found.shape == (2, 2, 3)
    classes = [c for c in range(4) if present[c]]
    for b in range(2):
        for y in range(2):
            for x in range(3):
                p = []
                for j in range(3):
                    mass = [math.exp(float(m[b, j, c, y, x])) for c in classes]
                    p.append([v / sum(mass) for v in mass])
                mean = [sum(row[c] for row in p) / 3 for c in range(3)]
                divergences = [sum(row[c] * math.log(row[c] / mean[c]) for c in range(3)) for row in p]
                expected = sum(math.exp(-rate * d) for d in divergences) / 3
                assert float(found[b, y, x]) == pytest.approx(expected, rel=1e-3)


def test_uncertainty_weight_is_one_where_the_images_agree_and_carries_no_gradient() -> None:
    m = torch.rand(2, 1, 4, 3, 3).requires_grad_()
    present = torch.ones(4, dtype=torch.bool)
    one_image = agreement(m, present)
    torch.testing.assert_close(one_image, torch.ones(2, 3, 3), rtol=0, atol=1e-3)
    assert not one_image.requires_grad
    torch.testing.assert_close(agreement(m.expand(2, 5, 4, 3, 3), present), torch.ones(2, 3, 3), rtol=0, atol=1e-3)
    apart = torch.zeros(1, 2, 4, 1, 1)
    apart[0, 0, 0], apart[0, 1, 1] = 1, 1
    assert agreement(apart, present).max() < 1e-6


@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("classes_shown", [1, 2, 5])
def test_cross_loss_stays_finite(images: int, classes_shown: int) -> None:
    """Zero feature vectors on both sides, absent classes, one image: the value and every gradient are finite."""
    torch.manual_seed(0)
    labeled, query = torch.randn(images, 6, 8, 8).relu(), torch.randn(2, 6, 8, 8).relu()
    labeled[:, :, :4, :4] = 0  # a whole region without features: zero prototypes
    query[:, :, 0] = 0
    labeled.requires_grad_()
    query.requires_grad_()
    labels = torch.randint(0, classes_shown, (images, 8, 8))
    prototypes = region_prototypes(labeled, labels, 6, 2)
    m = query_similarity(query, prototypes)
    logits = cross_logits(m, prototypes.present, 0.05)
    target = torch.randint(0, classes_shown, (2, 8, 8))
    weight = agreement(m, prototypes.present)
    loss = (weight * F.cross_entropy(logits, target, reduction="none")).mean()
    loss.backward()
    assert loss.isfinite()
    assert weight.isfinite().all()
    for tensor in (labeled, query):
        assert tensor.grad is not None
        assert tensor.grad.isfinite().all()
        assert tensor.grad.any() == (classes_shown > 1)


def test_gradient_of_the_cross_prediction() -> None:
    features, labels = labeled_batch()
    query = torch.randn(2, 7, 6, 8)
    weight = torch.randn(2, 5, 6, 8)

    def plain(features: Tensor, query: Tensor) -> Tensor:
        table = plain_prototypes(features, labels, 5, 2, 2)
        total = torch.zeros((), dtype=features.dtype)
        for b in range(2):
            for y in range(6):
                for x in range(8):
                    unit = query[b, :, y, x] / query[b, :, y, x].norm()
                    mass = []
                    for c in range(4):
                        vectors = [table[j, y // 3, x // 4, c] for j in range(3)]
                        mass.append(sum((unit @ v / v.norm() / 0.2).exp() for v in vectors))
                    for c in range(4):
                        total = total + weight[b, c, y, x] * mass[c] / sum(mass)
        return total

    def vectorised(features: Tensor, query: Tensor) -> Tensor:
        prototypes = region_prototypes(features, labels, 5, 2)
        logits = cross_logits(query_similarity(query, prototypes), prototypes.present, 0.2)
        return (weight * logits.softmax(1)).sum()

    leaves = [t.clone().requires_grad_() for t in (features, query)]
    doubles = [t.double().requires_grad_() for t in (features, query)]
    found = torch.autograd.grad(vectorised(*leaves), leaves)
    for a, b in zip(found, torch.autograd.grad(plain(*doubles), doubles), strict=True):
        torch.testing.assert_close(a, b.float(), rtol=1e-3, atol=1e-5)


def test_cross_prediction_under_bf16_autocast() -> None:
    features, labels = labeled_batch()
    query = torch.randn(2, 7, 6, 8)

    def predict(features: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        prototypes = region_prototypes(features, labels, 5, 2)
        m = query_similarity(query, prototypes)
        assert m.dtype == torch.float32
        return cross_logits(m, prototypes.present).softmax(1), agreement(m, prototypes.present)

    # Inputs that bf16 represents exactly: the arithmetic must stay in float32.
    features, query = features.bfloat16(), query.bfloat16()
    exact = predict(features.float(), query.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = predict(features, query)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a, b)


def test_meta_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """All functions create tensors on the device of their inputs."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it knows no meta device
    features = torch.rand(3, 7, 6, 8, device="meta")
    logits = torch.rand(3, 4, 6, 8, device="meta")
    prototypes = region_prototypes(features, torch.zeros(3, 6, 8, device="meta", dtype=torch.uint8), 4, 2)
    m = query_similarity(features, prototypes)
    exclude = torch.zeros(3, 3, dtype=torch.bool, device="meta")
    outputs = [
        *prototypes,
        m,
        cross_logits(m, prototypes.present, exclude=exclude),
        agreement(m, prototypes.present),
        refine_by_affinity(logits, features),
        refine_by_affinity(logits, features, space="probability"),
    ]
    assert all(x.is_meta for x in outputs)
    assert isinstance(prototypes, Prototypes)
