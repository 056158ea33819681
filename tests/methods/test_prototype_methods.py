from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from scripts.losses import MaskedDice
from scripts.methods import BCP
from scripts.methods.bcp import largest_components
from scripts.methods.scp_net import prototype_predictions
from scripts.views import WeakView
from tests.methods.common import build, make_batch, run, supervised_loss, trainer, values


def plain_dice(a: Tensor, b: Tensor) -> Tensor:
    """Mean over the classes of 1 - 2 <a, b> / (|a|^2 + |b|^2), sums over the batch."""
    losses = [1 - 2 * (a[:, c] * b[:, c]).sum() / ((a[:, c] ** 2).sum() + (b[:, c] ** 2).sum()) for c in range(4)]
    return torch.stack(losses).mean()


# --- properties of all of them


@pytest.mark.parametrize("name", ["bcp", "scp_net", "ss_net"])
def test_background_alone_leaves_the_losses_attached(name: str) -> None:
    """DistributedDataParallel waits for a gradient of every parameter."""
    objective = build(name)
    for network in [objective.network] + ([objective.teacher.module] if name == "bcp" else []):
        network.head.bias.data[0] += 100.0
    batch = make_batch()
    batch["label"] = torch.zeros_like(batch["label"])
    losses = run(objective, batch)
    if name == "ss_net":
        assert values(losses)["loss_separation_labeled"] == values(losses)["loss_separation_unlabeled"] == 0.0
        assert not objective.filled.any()
    losses["loss"].backward()
    trained = [p for p in objective.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained)


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("bcp", {"pretraining": 1.5}),
        ("bcp", {"unlabeled_weight": -1.0}),
        ("bcp", {"decay": 1.0}),
        ("scp_net", {"consistency_weight": -0.1}),
        ("ss_net", {"magnitude": -1.0}),
        ("ss_net", {"separation_weight": -1.0}),
        ("ss_net", {"memory_size": 1}),
        ("ss_net", {"memory_size": 8, "samples": 4}),
    ],
)
def test_mistakes_are_named(name: str, kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        build(name, **kwargs)


# --- through the trainer


@pytest.mark.parametrize("switch", [1, 2, 4])
def test_the_teacher_is_copied_at_the_switch_and_averaged_afterwards(switch: int) -> None:
    objective = build("bcp", pretraining=switch / 6, decay=0.9)
    history: list[Tensor] = []
    taught: list[Tensor] = []
    phases: list[bool] = []

    def record(engine: Any) -> None:
        history.append(objective.network.head.weight.detach().clone())
        taught.append(objective.teacher.module.head.weight.detach().clone())
        phases.append("loss_in_unlabeled" in engine.state.output[0])

    engine = trainer(objective, epochs=3)
    engine.add_event_handler(Events.ITERATION_COMPLETED, record)
    engine.run()
    assert phases == [i >= switch for i in range(6)]
    assert torch.equal(taught[switch - 1], history[switch - 1])
    last = 0.9 ** (6 - switch) * history[switch - 1]
    last = last + sum(0.1 * 0.9 ** (5 - i) * history[i] for i in range(switch, 6))
    torch.testing.assert_close(taught[-1], last)
    assert not torch.equal(taught[-1], history[-1])


# --- SCP-Net


def plain_prototypes(features: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p_self, p_cross and the weight, pixel by pixel."""
    images, classes, height, width = p.shape
    prototypes = torch.zeros(images, classes, features.shape[1])
    for b in range(images):
        for c in range(classes):
            prototypes[b, c] = (features[b] * p[b, c]).sum(dim=(1, 2)) / p[b, c].sum()
    itself, cross, weight = torch.zeros_like(p), torch.zeros_like(p), torch.zeros(images, height, width)
    for b in range(images):
        for y in range(height):
            for x in range(width):
                cosine = F.cosine_similarity(prototypes, features[b, :, y, x], dim=2)
                itself[b, :, y, x] = cosine[b].softmax(dim=0)
                total = sum(cosine[j].exp() for j in range(images) if j != b)
                cross[b, :, y, x] = total / total.sum()  # type: ignore[union-attr]
                entropy = 0.0
                for c in range(classes):
                    share = sum(int(cosine[j].argmax()) == c for j in range(images)) / images
                    entropy -= share * math.log(share) / math.log(classes) if share else 0.0
                weight[b, y, x] = itself[b, :, y, x].max() * (1 - entropy)
    return itself, cross, weight


def test_prototypes_predict_as_a_plain_reading_does() -> None:
    torch.manual_seed(0)
    features, p = torch.randn(3, 5, 4, 6), torch.randn(3, 4, 4, 6).softmax(dim=1)
    found = prototype_predictions(features.requires_grad_(), p)
    assert len(found[2].unique()) > 3
    for a, b in zip(found, plain_prototypes(features.detach(), p), strict=True):
        assert not a.requires_grad
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_scp_net_terms_and_gradient() -> None:
    objective = build("scp_net", weak=WeakView("none"))
    batch = make_batch((16, 16), 2, 1)
    network = copy.deepcopy(objective.network)
    losses = run(objective, batch)

    images = torch.cat([batch["image"], batch["unlabeled"]])
    features: list[Tensor] = []
    network.head.register_forward_hook(lambda _, x, y: features.append(x[0].detach()))
    logits = network(images)
    p = logits.softmax(dim=1)
    itself, cross, weight = plain_prototypes(features[0], p.detach())
    own = ((p - itself) ** 2).mean()
    other = (weight[:, None] * (p - cross) ** 2).mean()
    supervised = supervised_loss(logits[:2], batch["label"][:, 0])
    total = supervised + 0.1 * math.exp(-5 * 0.7**2) * (own + other) / 2
    expected = {"loss": total, "loss_self": own, "loss_cross": other, "loss_supervised": supervised}
    for key, value in expected.items():
        torch.testing.assert_close(losses[key], value, rtol=1e-4, atol=1e-6)

    # Targets and weights are constants: the gradient is that of p alone.
    for found, value in ((losses["loss_self"], own), (losses["loss_cross"], other)):
        a = torch.autograd.grad(found, list(objective.network.parameters()), retain_graph=True)
        b = torch.autograd.grad(value, list(network.parameters()), retain_graph=True)
        for x, y in zip(a, b, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-6)


# --- SS-Net


def test_adversarial_loss_is_one_gradient_step_of_virtual_adversarial_training() -> None:
    objective = build("ss_net", magnitude=24.0)
    network = copy.deepcopy(objective.network)
    images = make_batch(labeled=1)["unlabeled"]
    scale = images.shape[-1] / 256  # the lengths are those of 256 x 256 pixels
    target = network(images).detach().softmax(dim=1)
    inputs: list[Tensor] = []
    objective.network.register_forward_hook(lambda _, x, y: inputs.append(x[0].detach()))

    torch.manual_seed(7)
    loss = objective.adversarial_loss(images, target)
    torch.manual_seed(7)
    noise = torch.rand_like(images) - 0.5
    direction = torch.stack([n / n.norm() for n in noise]).requires_grad_()
    plain_dice(network(images + 10 * scale * direction).softmax(dim=1), target).backward()
    assert direction.grad is not None
    step = torch.stack([24 * scale * g / g.norm() for g in direction.grad])
    torch.testing.assert_close(inputs[0], images + 10 * scale * direction.detach())
    torch.testing.assert_close(inputs[1], images + step, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(loss, plain_dice(network(images + step).softmax(dim=1), target), rtol=1e-4, atol=1e-5)

    assert all(p.grad is None for p in objective.parameters())
    random = 24 * scale * direction.detach()
    assert loss > plain_dice(network(images + random).softmax(dim=1), target)


def test_ss_net_total() -> None:
    objective = build("ss_net", weak=WeakView("none"))
    network, batch = copy.deepcopy(objective.network), make_batch()
    v = values(run(objective, batch))
    assert v["loss_separation_labeled"] > 0
    assert v["loss_separation_unlabeled"] > 0
    consistency = v["loss_adversarial"] + 0.1 * (v["loss_separation_labeled"] + v["loss_separation_unlabeled"])
    assert v["loss_consistency"] == pytest.approx(consistency)
    assert v["loss"] == pytest.approx(v["loss_supervised"] + 0.1 * math.exp(-5 * 0.7**2) * consistency)
    logits = network(torch.cat([batch["image"], batch["unlabeled"]]))[:2]
    supervised = supervised_loss(logits, batch["label"][:, 0])
    assert v["loss_supervised"] == pytest.approx(float(supervised.detach()), rel=1e-5)


def labels_of(counts: list[int], size: int) -> Tensor:
    """A shuffled ``[1, size, size]`` label with so many pixels of classes 1, 2, ...; the rest is background."""
    flat = torch.zeros(size * size, dtype=torch.long)
    flat[: sum(counts)] = torch.repeat_interleave(torch.arange(1, len(counts) + 1), torch.tensor(counts))
    return flat[torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))].view(1, size, size)


def selector(objective: Any, c: int) -> nn.Sequential:
    """The selector of foreground class c (from 0) as a network of its own, as the reference builds it."""
    width = objective.width
    part = slice(c * width, (c + 1) * width)
    first, norm, _, last = objective.selectors
    own = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
    tensors = (
        *(first.weight[part, :, 0], first.bias[part]),
        *(norm.weight[part], norm.bias[part]),
        *(last.weight[c : c + 1, :, 0], last.bias[c : c + 1]),
    )
    for parameter, tensor in zip(own.parameters(), tensors, strict=True):
        parameter.data = tensor.detach().clone()
    return own


def test_separation_loss_with_every_pixel_of_each_class() -> None:
    objective = build("ss_net", samples=40, memory_size=6)
    torch.manual_seed(1)
    objective.selectors[1].weight.data.uniform_(0.5, 3.0)
    features, label = torch.randn(1, 4, 16, 16, requires_grad=True), labels_of([40, 40, 40], 16)
    objective.memory.normal_()
    objective.filled[0] = True
    objective.filled[1, :4] = True
    objective.filled[2, :1] = True  # one feature is none: the reference asks for two
    heads = copy.deepcopy(nn.ModuleList([objective.projection, objective.prediction]))
    loss = objective.separation_loss(features, label)

    rows, classes = features[0].flatten(1).T, label.flatten()
    used = classes > 0
    predicted, classes = heads[1](heads[0](rows[used])), classes[used]
    expected = torch.zeros(())
    for c, remembered in ((0, 6), (1, 4)):
        mine = predicted[classes == c + 1]
        weight = selector(objective, c)(mine.detach()).sigmoid()[:, 0]
        weight = weight * len(mine) / weight.sum()
        for i in range(len(mine)):
            for j in range(remembered):
                distance = 1 - F.cosine_similarity(mine[i], objective.memory[c, j], dim=0)
                expected = expected + weight[i] * distance / (len(mine) * remembered) / 4
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    (found,) = torch.autograd.grad(loss, features)
    (plain,) = torch.autograd.grad(expected, features)
    torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-6)


def test_memory_holds_the_best_rightly_predicted_features() -> None:
    objective = build("ss_net", samples=40, memory_size=6)
    objective.projection[1].running_mean.uniform_(-1, 1)
    torch.manual_seed(2)
    features, label = torch.randn(1, 4, 16, 16, requires_grad=True), labels_of([40, 4, 0], 16)
    objective.memory[2] = 7.0
    objective.filled[2, :3] = True
    objective.remember(features, label)
    assert objective.projection.training
    assert not objective.memory.requires_grad
    rows = features[0].flatten(1).T.detach()
    projection = copy.deepcopy(objective.projection).eval()
    with torch.no_grad():
        many, few = (projection(rows[label.flatten() == c]) for c in (1, 2))
        score = selector(objective, 0)(many)[:, 0]
        best = many[score.argsort(descending=True)[:6]]
    torch.testing.assert_close(objective.memory[0], best, rtol=1e-4, atol=1e-5)
    assert objective.filled[0].all()
    # fewer than the memory's size: all of them, once
    assert objective.filled[1].tolist() == [True] * 4 + [False] * 2
    for row in few:
        assert torch.isclose(objective.memory[1, :4], row, atol=1e-5).all(dim=1).sum() == 1
    # absent from the batch: unchanged
    assert (objective.memory[2] == 7).all()
    assert objective.filled[2].tolist() == [True] * 3 + [False] * 3


def test_only_right_foreground_pixels_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("ss_net", weak=WeakView("none"))
    network, batch = copy.deepcopy(objective.network), make_batch()
    seen: list[Tensor] = []
    original = objective.remember

    def spy(features: Tensor, label: Tensor) -> None:
        seen.append(label)
        original(features, label)

    monkeypatch.setattr(objective, "remember", spy)
    run(objective, batch)
    predicted = network(torch.cat([batch["image"], batch["unlabeled"]])).argmax(dim=1)[:2]
    label = batch["label"][:, 0].long()
    assert torch.equal(seen[0], torch.where(predicted == label, label, 0))
    assert seen[0].any()


def test_drawn_pixels() -> None:
    objective = build("ss_net", samples=20, memory_size=2)
    label = labels_of([50, 8, 0], 16)
    features = torch.stack([torch.arange(256.0).view(16, 16), label[0].float()])[None]
    vectors, count = objective.draw(features, label)
    assert count.tolist() == [20, 8, 0]
    assert vectors.shape == (3, 20, 2)
    assert (vectors[0, :, 1] == 1).all()
    assert len(vectors[0, :, 0].unique()) == 20
    assert (vectors[1, :, 1] == 2).all()
    assert len(vectors[1, :8, 0].unique()) == 8
    assert torch.equal(vectors[1, :8], vectors[1, 8:16])


# --- BCP


def test_mixed_loss() -> None:
    objective = build("bcp")
    network = copy.deepcopy(objective.network)
    batch = make_batch((16, 20), unlabeled=2)
    image, pasted = batch["image"], batch["unlabeled"]
    label = batch["label"][:, 0]
    pasted_label = label.flip(0, 2)
    box = torch.zeros(16, 20, dtype=torch.bool)
    box[3:13, 5:18] = True
    loss = objective.mixed_loss(image, label, pasted, pasted_label, box, (0.5, 2.0))

    mixed = image.clone()
    mixed[..., 3:13, 5:18] = pasted[..., 3:13, 5:18]
    p = network(mixed).softmax(dim=1)
    expected = torch.zeros(())
    for weight, truth, inside in ((0.5, label, False), (2.0, pasted_label, True)):
        entropy, pixels = torch.zeros(()), 0
        selected = torch.zeros(2, 4, 16, 20)
        for b in range(2):
            for y in range(16):
                for x in range(20):
                    if (3 <= y < 13 and 5 <= x < 18) is inside:
                        entropy = entropy - p[b, int(truth[b, y, x]), y, x].log()
                        selected[b, :, y, x] = 1
                        pixels += 1
        onehot = F.one_hot(truth.long(), 4).movedim(-1, 1)
        expected = expected + weight * (entropy / pixels + plain_dice(p * selected, onehot * selected)) / 2
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pretraining", [True, False])
def test_what_is_pasted_into_what(pretraining: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("bcp", weak=WeakView("none"))
    objective.iteration = 0 if pretraining else 30
    teacher, batch = copy.deepcopy(objective.teacher), make_batch(labeled=4, unlabeled=4)
    calls: list[tuple[Any, ...]] = []
    original = objective.mixed_loss

    def spy(*args: Any) -> Tensor:
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(objective, "mixed_loss", spy)
    losses = run(objective, batch)
    image, label, other = batch["image"], batch["label"][:, 0], batch["unlabeled"]
    target = largest_components(teacher(other).argmax(dim=1), 4)
    expected: list[tuple[Any, ...]] = [(image[:2], label[:2], image[2:], label[2:], (1.0, 1.0))]
    if not pretraining:
        expected = [
            (other[:2], target[:2], image[:2], label[:2], (0.5, 1.0)),
            (image[2:], label[2:], other[2:], target[2:], (1.0, 0.5)),
        ]
        assert not torch.equal(calls[0][0], calls[1][2])
    assert len(calls) == len(expected)
    for found, plain in zip(calls, expected, strict=True):
        *tensors, box, weights = found
        assert all(torch.equal(a, b) for a, b in zip(tensors, plain[:-1], strict=True))
        assert weights == plain[-1]
        assert torch.equal(box, calls[0][4])
    parts = [v for k, v in values(losses).items() if k != "loss"]
    assert values(losses)["loss"] == pytest.approx(sum(parts))


def test_halves_of_one_image_are_that_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image pasted into itself is unchanged: pre-training is then L_s of each region."""
    objective = build("bcp", weak=WeakView("none"))
    objective.iteration = 0
    network, batch = copy.deepcopy(objective.network), make_batch(labeled=1)
    box = torch.zeros(32, 32, dtype=torch.bool)
    box[:21, 4:25] = True
    monkeypatch.setattr(objective, "draw_box", lambda image: box)
    loss = run(objective, batch)["loss"]
    logits, label = network(batch["image"]), batch["label"][:, 0].long()
    pixels = F.cross_entropy(logits, label, reduction="none")[0]
    dice = MaskedDice()
    plain = [pixels[m].mean() / 2 + dice(logits, label, m[None]) / 2 for m in (box, ~box)]
    torch.testing.assert_close(loss, plain[0] + plain[1])


def test_box_covers_two_thirds_of_both_sides_anywhere() -> None:
    torch.manual_seed(0)
    boxes = torch.stack([BCP.draw_box(torch.zeros(1, 1, 32, 48)) for _ in range(300)])
    rows, columns = boxes.any(dim=2), boxes.any(dim=1)
    assert (rows.sum(dim=1) == 21).all()
    assert (columns.sum(dim=1) == 32).all()
    assert (boxes.sum(dim=(1, 2)) == 21 * 32).all()
    assert sorted(set(rows.int().argmax(dim=1).tolist())) == list(range(11))
    assert sorted(set(columns.int().argmax(dim=1).tolist())) == list(range(16))


def test_pseudo_labels_are_the_teachers_largest_components() -> None:
    objective = build("bcp", weak=WeakView("none"))
    views = objective.weak_views(make_batch())
    teacher = copy.deepcopy(objective.teacher)
    found = objective.pseudo_labels(views)
    p = teacher(views.unlabeled).softmax(dim=1)
    assert np.array_equal(found["teacher"].label.numpy(), plain_largest(p.argmax(dim=1).numpy()))
    torch.testing.assert_close(found["teacher"].confidence, p.amax(dim=1))
    assert set(found) == {"decoder", "teacher"}


def plain_largest(label: NDArray[Any]) -> NDArray[Any]:
    """The largest 8-connected component of each class, by scipy; of equal ones the first."""
    kept = np.zeros_like(label)
    for b in range(len(label)):
        for c in range(1, 4):
            components, count = ndimage.label(label[b] == c, np.ones((3, 3)))
            if count:
                sizes = np.bincount(components.ravel())[1:]
                kept[b][components == 1 + sizes.argmax()] = c
    return kept


def serpentine(size: int) -> NDArray[Any]:
    """One winding path over a whole square, the longest component."""
    path = np.zeros((size, size), dtype=np.int64)
    path[::2] = 1
    path[1::4, -1] = path[3::4, 0] = 1
    return path


def component_cases() -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random((3, 64, 48)), (0, 2, 2))
    dots = {f"dots {p}": (rng.random((3, 64, 64)) < p).astype(np.int64) for p in (0.2, 0.35, 0.4, 0.5)}
    return {
        **dots,
        "classes": rng.integers(0, 4, (4, 40, 56)),
        "blobs": np.digitize(smooth, np.quantile(smooth, [0.4, 0.6, 0.8])),
        "serpentine": np.stack([serpentine(224), serpentine(224).T, serpentine(224)[::-1]]),
        "background": np.zeros((2, 8, 8), dtype=np.int64),
        "one class": np.full((1, 9, 9), 3),
        "equal sizes": np.array([[[0, 1, 0, 2, 2], [0, 0, 0, 0, 0], [1, 0, 2, 2, 0]]]),
        "diagonal": np.eye(7, dtype=np.int64)[None],
    }


@pytest.mark.parametrize("case", component_cases())
def test_largest_components_are_scipys(case: str) -> None:
    label = component_cases()[case]
    found = largest_components(torch.from_numpy(label), 4)
    assert found.dtype == torch.int64
    assert np.array_equal(found.numpy(), plain_largest(label))
