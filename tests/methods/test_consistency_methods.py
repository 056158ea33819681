from __future__ import annotations

import copy
import math

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser
from torch import Tensor, nn

from bundle.workflows import CONFIGS
from scripts.methods import CrossPseudoSupervision
from scripts.methods.consistency import TaughtConsistency
from scripts.views import WeakView
from tests.methods.common import METHODS, build, calls, make_batch, run, supervised_loss, trainer, values

TAUGHT = tuple(name for name, kind in METHODS.items() if issubclass(kind, TaughtConsistency))
BLENDING = ("interpolation_consistency", "ict_med")
NAMES = (*TAUGHT, "entropy_minimization", "deep_co_training", "cross_pseudo_supervision")


# --- properties of all of them


@pytest.mark.parametrize("name", NAMES)
def test_the_total_is_the_supervised_loss_and_the_ramped_consistency(name: str) -> None:
    objective = build(name, weak=WeakView("none"))
    batch = make_batch()
    nets = [copy.deepcopy(objective.network)]
    if name == "cross_pseudo_supervision":
        nets.append(copy.deepcopy(objective.second))
    passes = calls(objective.network)
    found = values(run(objective, batch))
    if name in BLENDING:
        joint = [passes[0][0]]  # the blends are tested below
        assert torch.equal(joint[0][:2], batch["image"])
    else:
        joint = [torch.cat([batch["image"], batch["unlabeled"]])] * len(nets)
    with torch.no_grad():
        if name == "medfct":  # each branch learns by itself
            predictions = [branch.logits for branch in nets[0].branches(joint[0])]
        else:
            predictions = [net(x) for net, x in zip(nets, joint, strict=True)]
        supervised = [supervised_loss(logits[:2], batch["label"][:, 0]) for logits in predictions]
    assert found["loss_supervised"] == pytest.approx(float(sum(supervised)), rel=1e-5)
    assert found["loss_consistency"] > 0
    weight = 0.1 * math.exp(-5 * 0.7**2)
    assert found["loss"] == pytest.approx(found["loss_supervised"] + weight * found["loss_consistency"], rel=1e-6)
    objective.iteration = 100
    last = values(run(objective, batch))
    assert last["loss"] == pytest.approx(last["loss_supervised"] + 0.1 * last["loss_consistency"], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("entropy_minimization", {"consistency_weight": -0.1}),
        ("mean_teacher", {"decay": 1.0}),
        ("mean_teacher", {"noise": -0.1}),
        ("uncertainty_aware_mean_teacher", {"passes": 0}),
        ("interpolation_consistency", {"alpha": 0.0}),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        build(name, **options)


# --- each against a plain reading of its equations


def squared_distance(p: Tensor, q: Tensor) -> float:
    """Mean over images, classes and pixels, one after another."""
    pairs = zip(p.flatten().tolist(), q.flatten().tolist(), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) / p.numel()


def test_mean_teacher_by_hand() -> None:
    objective = build("mean_teacher", weak=WeakView("none"))
    batch = make_batch(unlabeled=4)
    student, teacher = copy.deepcopy(objective.network), copy.deepcopy(objective.teacher.module)
    taught = calls(objective.teacher.module)
    found = values(run(objective, batch))
    assert len(taught) == 1
    noise = taught[0][0] - batch["unlabeled"]
    assert noise.abs().max() == pytest.approx(0.2, abs=1e-6)
    assert 0.9 < float((noise.abs() < 0.1).float().mean()) / math.erf(1 / math.sqrt(2)) < 1.1  # normal, sigma .1
    p = student(torch.cat([batch["image"], batch["unlabeled"]])).softmax(1)[2:]
    q = teacher(batch["unlabeled"] + noise).softmax(1)
    assert found["loss_consistency"] == pytest.approx(squared_distance(p, q), rel=1e-4)


def test_uncertainty_aware_mean_teacher_by_hand() -> None:
    passes = 5
    objective = build("uncertainty_aware_mean_teacher", weak=WeakView("none"), passes=passes)
    batch = make_batch()
    student = copy.deepcopy(objective.network)
    taught = calls(objective.teacher.module)
    found = values(run(objective, batch))
    assert len({float(x.sum()) for x, _ in taught}) == passes + 1  # its own noise every time
    target, *others = [z.softmax(1) for _, z in taught]
    with torch.no_grad():
        p = student(torch.cat([batch["image"], batch["unlabeled"]])).softmax(1)[2:]
    threshold = (3 / 4 + 1 / 4 * math.exp(-5 * 0.7**2)) * math.log(4)
    distances, pixels = 0.0, 0
    for b in range(3):
        for y in range(32):
            for x in range(32):
                mean = sum(q[b, :, y, x] for q in others) / passes
                if -sum(v * math.log(v) for v in mean.tolist()) < threshold:
                    distances += float(((p[b, :, y, x] - target[b, :, y, x]) ** 2).mean())
                    pixels += 1
    assert 0 < pixels < 3 * 32 * 32  # the gate matters
    assert found["coverage_teacher"] == pytest.approx(pixels / (3 * 32 * 32), abs=1e-3)
    assert found["loss_consistency"] == pytest.approx(distances / pixels, rel=1e-3)


def test_where_the_teacher_is_nowhere_sure_a_zero_stays_attached() -> None:
    objective = build("uncertainty_aware_mean_teacher")
    nn.init.zeros_(objective.teacher.module.head.weight)
    nn.init.zeros_(objective.teacher.module.head.bias)
    losses = run(objective)
    assert losses["coverage_teacher"] == losses["loss_consistency"] == 0
    losses["loss_consistency"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in objective.network.parameters())


def test_entropy_minimization_by_hand() -> None:
    objective = build("entropy_minimization", weak=WeakView("none"))
    batch = make_batch()
    p = copy.deepcopy(objective.network)(torch.cat([batch["image"], batch["unlabeled"]])).softmax(1)
    expected = -sum(v * math.log(v) for v in p.flatten().tolist()) / math.log(4) / (5 * 32 * 32)
    assert values(run(objective, batch))["loss_consistency"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", BLENDING)
def test_interpolation_consistency_by_hand(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build(name, weak=WeakView("none"))
    drawn = []
    original = objective.pairs
    monkeypatch.setattr(objective, "pairs", lambda batch: drawn.append(original(batch)) or drawn[0])
    batch = make_batch(unlabeled=4)
    student, teacher = copy.deepcopy(objective.network), copy.deepcopy(objective.teacher.module)
    found = values(run(objective, batch, seed=5))
    first, second, share = (x.tolist() for x in drawn[0])
    share = share * (len(first) // len(share))
    q = teacher(batch["unlabeled"]).softmax(1)
    images, targets = [
        torch.stack([(1 - s) * x[i] + s * x[j] for i, j, s in zip(first, second, share, strict=True)])
        for x in (batch["unlabeled"], q)
    ]
    assert any(0.01 < s < 0.99 for s in share)
    p = student(torch.cat([batch["image"], images])).softmax(1)[2:]
    assert found["loss_consistency"] == pytest.approx(squared_distance(p, targets), rel=1e-4)


def test_pairs_of_blended_images() -> None:
    ict, med = build("interpolation_consistency"), build("ict_med")
    for batch in range(1, 6):
        first, second, share = ict.pairs(batch)
        assert first.tolist() == sorted(second.tolist()) == list(range(batch))
        assert share.shape == (1,)
        first, second, share = med.pairs(batch)
        assert len(first) == len(second) == len(share) == math.ceil(batch / 2)
        assert {*first.tolist(), *second.tolist()} == set(range(batch))
        assert all(i != j for i, j in zip(first.tolist(), second.tolist(), strict=True)) or batch == 1
    torch.manual_seed(0)
    shares = torch.cat([med.pairs(8)[2] for _ in range(500)])
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(shares.var()) == pytest.approx(0.25 / 1.4, abs=0.01)  # of Beta(.2, .2)


def test_deep_co_training_by_hand() -> None:
    batch = make_batch((32, 48))
    seen = set()
    for seed in range(12):
        if len(seen) == 4:
            break
        objective = build("deep_co_training", weak=WeakView("none"))
        passes = calls(objective.network)
        losses = run(objective, batch, seed)
        assert len(passes) == 2
        turned_image = passes[1][0]
        turns = [k for k in range(4) if turned_image.equal(torch.rot90(batch["unlabeled"], k, (2, 3)))]
        assert len(turns) == 1
        if turns[0] in seen:
            continue
        seen.add(turns[0])
        net = build("deep_co_training").network
        upright = net(torch.cat([batch["image"], batch["unlabeled"]])).softmax(1)[2:]
        turned = torch.rot90(net(turned_image).softmax(1), -turns[0], (2, 3))  # here, the rotated one is rotated back
        expected = (upright - turned).square().mean()
        assert float(losses["loss_consistency"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
        # Two halves, each with one side held fast, have half the gradient of the whole.
        losses["loss_consistency"].backward()
        gradients = torch.autograd.grad(expected, list(net.parameters()))
        for p, gradient in zip(objective.network.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient / 2, rtol=1e-3, atol=1e-6)
    assert seen == {0, 1, 2, 3}


def test_cross_pseudo_supervision_by_hand() -> None:
    objective = build("cross_pseudo_supervision", weak=WeakView("none"))
    batch = make_batch()
    nets = [copy.deepcopy(objective.network), copy.deepcopy(objective.second)]
    with torch.no_grad():
        p, q = (net(torch.cat([batch["image"], batch["unlabeled"]])).softmax(1)[2:] for net in nets)
    expected = 0.0
    for b in range(3):
        for y in range(32):
            for x in range(32):
                u, v = p[b, :, y, x], q[b, :, y, x]
                expected -= float(u[v.argmax()].log() + v[u.argmax()].log()) / (3 * 32 * 32)
    assert values(run(objective, batch))["loss_consistency"] == pytest.approx(expected, rel=1e-4)
    assert not torch.equal(p.argmax(1), q.argmax(1))  # the networks differ
    with pytest.raises(ValueError, match="second: expected a network of its own"):
        CrossPseudoSupervision(network=nets[0], second=nets[0])


@pytest.mark.parametrize("name", NAMES)
def test_kinds_of_pseudo_labels(name: str) -> None:
    objective = build(name)
    with torch.no_grad():
        kinds = objective.pseudo_labels(objective.weak_views(make_batch()))
    other = {"teacher"} if name in TAUGHT else {"second"} if name == "cross_pseudo_supervision" else set()
    assert set(kinds) == {"decoder"} | other
    assert all(label.shape == confidence.shape == (3, 32, 32) for label, confidence in kinds.values())


# --- in training


def test_the_teacher_follows_the_closed_form() -> None:
    objective = build("mean_teacher", dropout=0.5)
    history: list[dict[str, Tensor]] = []
    engine = trainer(objective)
    engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: history.append(copy.deepcopy(objective.network.state_dict()))
    )
    engine.run()
    assert len(history) == 4
    shares = [0.99**3, 0.01 * 0.99**2, 0.01 * 0.99, 0.01]
    student = dict(objective.network.named_parameters())
    for key, weight in objective.teacher.module.state_dict().items():
        if key in student:
            expected = sum(share * state[key] for share, state in zip(shares, history, strict=True))
            assert not torch.equal(weight, history[-1][key])
        else:
            expected = history[-1][key]
        torch.testing.assert_close(weight, expected)


def test_both_networks_of_cross_pseudo_supervision_follow_the_config_and_start_apart() -> None:
    files = [CONFIGS / "train.json", CONFIGS / "methods" / "cross_pseudo_supervision.json"]
    parser = ConfigParser(ConfigParser.load_config_files(files))
    parser.update({"device": "$torch.device('cpu')", "num_classes": 2, "in_channels": 3})
    torch.manual_seed(0)
    objective = parser.get_parsed_content("method")
    first, second = objective.network.state_dict(), objective.second.state_dict()
    assert {k: v.shape for k, v in first.items()} == {k: v.shape for k, v in second.items()}
    assert objective.second.num_classes == 2
    for name, parameter in objective.network.named_parameters():
        if parameter.ndim == 4:
            assert not torch.equal(parameter, second[name]), name
