from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from scripts.augmentation import AugmentedView
from scripts.draws import Draws
from scripts.methods import Objective, SemSim
from scripts.views import MixedView, StrongView, WeakView
from tests.methods.common import build, make_batch, run, values

SEMI = ("fixmatch", "unimatch", "semsim_minus", "semsim")
TOTALS: dict[str, Callable[[dict[str, Tensor]], Tensor]] = {
    "fixmatch": lambda v: (v["loss_supervised"] + v["loss_consistency"]) / 2,
    "unimatch": lambda v: (
        (v["loss_supervised"] + 0.25 * v["loss_strong_1"] + 0.25 * v["loss_strong_2"] + 0.5 * v["loss_feature"]) / 2
    ),
    "semsim": lambda v: (
        (v["loss_supervised"] + 0.5 * v["loss_decoder"] + 0.25 * v["loss_intra"] + 0.25 * v["loss_cross"]) / 2
    ),
}
TOTALS["semsim_minus"] = TOTALS["semsim"]
PARTS = ("loss_supervised", "loss_decoder", "loss_intra", "loss_cross")


def grads(objective: Objective, loss: Tensor) -> dict[str, Tensor | None]:
    names, parameters = zip(*objective.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return dict(zip(names, found, strict=True))


def spy(monkeypatch: pytest.MonkeyPatch, target: Any, name: str) -> list[tuple[Any, Any, bool]]:
    """Record (argument, result, whether gradients were on) of every call of a method."""
    calls: list[tuple[Any, Any, bool]] = []
    original = getattr(target, name)

    def wrapper(argument: Any) -> Any:
        result = original(argument)
        calls.append((argument, result, torch.is_grad_enabled()))
        return result

    monkeypatch.setattr(target, name, wrapper)
    return calls


# --- properties of all of them


@pytest.mark.parametrize("name", SEMI)
def test_total_and_coverage(name: str) -> None:
    losses = run(build(name, threshold=0.3))
    torch.testing.assert_close(losses["loss"], TOTALS[name](losses))
    coverage = [v for k, v in values(losses).items() if k.startswith("coverage")]
    assert coverage
    assert all(0 < v <= 1 for v in coverage)


@pytest.mark.parametrize("name", SEMI)
def test_where_nothing_passes_zeros_stay_attached(name: str) -> None:
    """DistributedDataParallel waits for a gradient of every parameter."""
    kwargs = {"query_temperature": 1.0} if "semsim" in name else {}
    objective = build(name, threshold=1.0, **kwargs)
    losses = run(objective)
    found = values(losses)
    consistency = [k for k in found if k.startswith("loss_") and k != "loss_supervised"]
    assert len(consistency) == (1 if name == "fixmatch" else 3)
    assert all(found[k] == 0.0 for k in consistency)
    assert all(v == 0.0 for k, v in found.items() if k.startswith("coverage"))
    assert found["loss"] == pytest.approx(found["loss_supervised"] / 2)
    losses["loss"].backward()
    for parameter, p in objective.named_parameters():
        assert p.grad is not None, parameter
        assert p.grad.isfinite().all(), parameter


@pytest.mark.parametrize("name", ["semsim_minus", "semsim"])
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_labelled_images_of_background_alone(name: str, threshold: float) -> None:
    batch = make_batch()
    batch["label"] = torch.zeros_like(batch["label"])
    objective = build(name, threshold=threshold)
    losses = run(objective, batch)
    losses["loss"].backward()
    assert losses["loss_cross"].item() == 0.0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("mode", ["flip", "rotate_flip"])
def test_a_shared_weak_view_is_the_same_for_labelled_and_unlabelled_images(mode: str) -> None:
    batch = make_batch()
    batch["unlabeled"] = batch["image"].clone()
    for shared in (True, False):
        objective = build("fixmatch", weak=WeakView(mode, shared=shared))
        same = []
        for seed in range(12):
            torch.manual_seed(seed)
            views = objective.weak_views(batch)
            same.append(torch.equal(views.image, views.unlabeled))
        assert all(same) == shared


def test_supervised_does_without_unlabelled_images() -> None:
    batch = make_batch()
    del batch["unlabeled"]
    assert run(build("supervised"), batch)["loss"].isfinite()


@pytest.mark.parametrize("threshold", [-0.1, 1.5, 95])
def test_threshold_is_a_confidence(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        build("fixmatch", threshold=threshold)


def test_per_image_dice_makes_a_batch_the_mean_of_its_images() -> None:
    objective = build("supervised", weak=WeakView("none"), per_image_dice=True).eval()
    batch = make_batch(labeled=4)
    halves = [{k: v[part] for k, v in batch.items()} for part in (slice(0, 2), slice(2, 4))]
    parts = [run(objective, half)["loss"] for half in halves]
    whole = run(objective, batch)["loss"]
    torch.testing.assert_close(whole, (parts[0] + parts[1]) / 2)
    for a, b in zip(
        grads(objective, whole).values(), grads(objective, (parts[0] + parts[1]) / 2).values(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# --- against a plain reading of the equations


def dice(p: Tensor, label: Tensor, passed: Tensor) -> float:
    total = 0.0
    for c in range(p.shape[1]):
        predicted, truth = p[:, c][passed], (label[passed] == c).float()
        size = float((predicted**2).sum() + (truth**2).sum())
        total += 1 - 2 * float((predicted * truth).sum()) / size if size > 0 else 0.0
    return total / p.shape[1]


def supervised_loss(logits: Tensor, label: Tensor) -> float:
    p = logits.softmax(1)
    cross_entropy = -p.gather(1, label.long()).log().mean()
    return (float(cross_entropy) + dice(p, label[:, 0], torch.ones_like(label[:, 0], dtype=torch.bool))) / 2


def paste(view: MixedView, target: Tensor) -> Tensor:
    """Pixel by pixel, the box read at the target's resolution."""
    step = view.box.shape[-1] // target.shape[-1]
    out = target.clone()
    for b, y, x in view.box[:, 0, ::step, ::step].nonzero().tolist():
        out[b, y, x] = target[view.partner[b], y, x]
    return out


def downsample(logits: Tensor) -> Tensor:
    """Bilinear reduction by four: the middle two of four pixels along each axis."""
    rows = (logits[..., 1::4, :] + logits[..., 2::4, :]) / 2
    return (rows[..., 1::4] + rows[..., 2::4]) / 2


def majority(label: Tensor) -> Tensor:
    """The most frequent class of each 4 x 4 cell."""
    cells = label.unfold(-2, 4, 4).unfold(-2, 4, 4).flatten(-2)
    return torch.stack([(cells == c).sum(-1) for c in range(4)]).argmax(0)


def refine(small: Tensor, features: Tensor, temperature: float, space: str) -> Tensor:
    """p^in of Eq. 5 with the matrix in full."""
    q = (features / features.norm(dim=1, keepdim=True).clamp_min(1e-9)).flatten(2)
    matrix = (q.transpose(1, 2) @ q / temperature).softmax(-1)
    value = (small if space == "logit" else small.softmax(1)).flatten(2)
    value = value + value @ matrix.transpose(1, 2)
    return (value.softmax(1) if space == "logit" else value / 2).view_as(small)


def prototypes_by_image(features: Tensor, labels: Tensor, regions: int) -> dict[tuple[int, int, int, int], Tensor]:
    side = features.shape[-1] // regions
    table = {}
    for j in range(len(features)):
        for c in range(4):
            everywhere = labels[j] == c
            for r in range(regions):
                for k in range(regions):
                    here = torch.zeros_like(everywhere)
                    here[r * side : (r + 1) * side, k * side : (k + 1) * side] = True
                    here &= everywhere
                    chosen = here if here.any() else everywhere
                    assert chosen.any()
                    table[j, r, k, c] = features[j][:, chosen].mean(1)
    return table


def query(features: Tensor, table: dict[tuple[int, int, int, int], Tensor], images: int, regions: int) -> Tensor:
    """m, ``[B, J, C, h, w]`` (Eq. 8)."""
    batch, _, height, width = features.shape
    side = height // regions
    m = torch.zeros(batch, images, 4, height, width)
    for (j, r, k, c), vector in table.items():
        rows, columns = slice(r * side, (r + 1) * side), slice(k * side, (k + 1) * side)
        m[:, j, c, rows, columns] = F.cosine_similarity(features[:, :, rows, columns], vector[None, :, None, None])
    return m


def cross_prediction(m: Tensor, temperature: float) -> Tensor:
    mass = (m / temperature).exp().sum(1)
    return mass / mass.sum(1, keepdim=True)


def certainty(m: Tensor, rate: float) -> Tensor:
    p = m.softmax(2)
    divergence = (p * (p / p.mean(1, keepdim=True)).log()).sum(2)
    return (-rate * divergence).exp().mean(1)


@torch.no_grad()
def algorithm_1(
    objective: SemSim, batch: dict[str, Tensor], views: list[MixedView], *, shared: tuple[str, ...]
) -> dict[str, float]:
    """The losses of Algorithm 1 on given strong views S1 and S2, without channel dropout and weak flips."""
    o, net, tau = objective, objective.network, objective.threshold
    assert o.fusion is not None
    n, labels = o.regions, majority(batch["label"][:, 0])
    z_w, z_l, z_s = net(batch["unlabeled"]), net(batch["image"]), net(views[0].image)
    f_w, f_l, f_s1, f_s2 = (
        o.fusion(net.encode(x)) for x in (batch["unlabeled"], batch["image"], views[0].image, views[1].image)
    )
    table, images = prototypes_by_image(f_l, labels, n), len(labels)

    p_w, p_w_small = z_w.softmax(1), downsample(z_w).softmax(1)
    space, gate = getattr(o, "affinity_space", "logit"), getattr(o, "gate", "self")
    p_1w = refine(downsample(z_w), f_w, o.affinity_temperature, space)
    p_2w = cross_prediction(query(f_w, table, images, n), o.query_temperature)
    (c_u, y_u), (c_in, y_in), (c_cr, y_cr) = p_w.max(1), p_1w.max(1), p_2w.max(1)
    confidence, decoded = p_w_small.max(1)
    if gate == "decoder":
        c_cr = confidence
    elif gate == "agree":
        c_cr = torch.where(y_cr == decoded, confidence, 0)
    if shared:
        small = {"decoder": p_w_small, "intra": p_1w, "cross": p_2w}
        large = {"decoder": p_w, **{k: F.interpolate(small[k], scale_factor=4, mode="bilinear") for k in [*small][1:]}}
        c_in, y_in = c_cr, y_cr = (sum(small[kind] for kind in shared) / len(shared)).max(1)
        c_u, y_u = (sum(large[kind] for kind in shared) / len(shared)).max(1)

    s1, s2 = views
    l_u = dice(z_s.softmax(1), paste(s1, y_u), paste(s1, c_u) >= tau)
    p_in = refine(downsample(z_s), f_s1, o.affinity_temperature, space)
    l_in = dice(p_in, paste(s1, y_in), paste(s1, c_in) >= tau)
    m = query(f_s2, table, images, n)
    p_cr = cross_prediction(m, o.query_temperature)
    cross_entropy = -p_cr.gather(1, paste(s2, y_cr)[:, None])[:, 0].log()
    l_cr = ((paste(s2, c_cr) >= tau) * certainty(m, o.uncertainty_rate) * cross_entropy).mean()
    own = query(f_l, table, images, n)
    l_q = 0.0
    for b in range(images):
        others = [j for j in range(images) if j != b]
        p = cross_prediction(own[b : b + 1, others], o.query_temperature)
        l_q -= float(p.gather(1, labels[b][None, None].long()).log().mean()) / images
    return {
        "loss_supervised": supervised_loss(z_l, batch["label"]),
        "loss_decoder": l_u,
        "loss_intra": l_in,
        "loss_cross": float(l_cr),
        "loss_query": l_q,
        "coverage_decoder": float((c_u >= tau).float().mean()),
        "coverage_intra": float((c_in >= tau).float().mean()),
        "coverage_cross": float((c_cr >= tau).float().mean()),
        "coverage_cross_foreground": float((c_cr >= tau)[y_cr > 0].float().mean()),
    }


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("semsim", {}),
        ("semsim_minus", {}),
        ("semsim_minus", {"gate": "decoder", "affinity_space": "probability", "regions": 2}),
        ("semsim", {"gate": "agree", "affinity_temperature": 1.0, "regions": 1, "uncertainty_rate": 100.0}),
        ("semsim_minus", {"shared_target": True, "query_temperature": 0.2, "regions": 8}),
        ("semsim_minus", {"shared_target": True, "shared_kinds": ("cross",), "query_temperature": 0.2}),
        ("semsim_minus", {"shared_target": True, "shared_kinds": ("decoder", "cross"), "query_temperature": 0.2}),
    ],
)
def test_semsim_equals_a_plain_reading_of_algorithm_1(name: str, options: dict[str, Any]) -> None:
    settings = {"weak": WeakView("none"), "channel_dropout": "none", "lambda_query": 0.5, "threshold": 0.5}
    objective = build(name, **settings, **options)
    assert isinstance(objective, SemSim)
    batch = make_batch(labeled=3, unlabeled=4)
    views: list[MixedView] = []
    objective.strong.register_forward_hook(lambda _, __, view: views.append(view))
    found = values(run(objective, batch))
    assert len(views) == 2
    assert all(view.box.any() for view in views)
    shared = options.get("shared_kinds", ("decoder", "intra")) if options.get("shared_target") else ()
    expected = algorithm_1(objective, batch, views, shared=shared)
    for part in ("decoder", "intra", "cross"):
        assert 0 < expected[f"coverage_{part}"] < 1  # the mask matters
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-3, abs=2e-5), key
    total = found["loss_supervised"] + 0.5 * found["loss_decoder"] + 0.25 * (found["loss_intra"] + found["loss_cross"])
    assert found["loss"] == pytest.approx(total / 2 + 0.5 * found["loss_query"], rel=1e-5)


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_fixmatch_by_hand(threshold: float) -> None:
    objective = build("fixmatch", weak=WeakView("none"), threshold=threshold)
    views: list[MixedView] = []
    objective.strong.register_forward_hook(lambda _, __, view: views.append(view))
    batch = make_batch(unlabeled=4)
    found = values(run(objective, batch))
    with torch.no_grad():
        confidence, label = objective.network(batch["unlabeled"]).softmax(1).max(1)
        p, z_l = objective.network(views[0].image).softmax(1), objective.network(batch["image"])
    assert views[0].box.any()
    passed = paste(views[0], confidence) >= threshold
    assert found["loss_consistency"] == pytest.approx(dice(p, paste(views[0], label), passed), abs=2e-5)
    assert found["loss_supervised"] == pytest.approx(supervised_loss(z_l, batch["label"]), abs=2e-5)
    assert found["coverage_decoder"] == pytest.approx(float((confidence >= threshold).float().mean()))
    assert (found["coverage_decoder"] == 1) == (threshold == 0)


def test_unimatch_by_hand() -> None:
    objective = build("unimatch", weak=WeakView("none"), threshold=0.5, feature_dropout=0.0)
    views: list[MixedView] = []
    objective.strong.register_forward_hook(lambda _, __, view: views.append(view))
    batch = make_batch(unlabeled=4)
    found = values(run(objective, batch))
    with torch.no_grad():
        p_w = objective.network(batch["unlabeled"]).softmax(1)
        confidence, label = p_w.max(1)
        for number, view in enumerate(views, start=1):
            p = objective.network(view.image).softmax(1)
            expected = dice(p, paste(view, label), paste(view, confidence) >= 0.5)
            assert found[f"loss_strong_{number}"] == pytest.approx(expected, abs=2e-5)
    assert len(views) == 2
    assert not torch.equal(views[0].image, views[1].image)
    assert found["loss_feature"] == pytest.approx(dice(p_w, label, confidence >= 0.5), abs=2e-5)


def test_unimatch_drops_half_of_the_channels_of_the_weak_features(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("unimatch", threshold=0.0)
    calls = spy(monkeypatch, objective.network, "decode")
    run(objective)["loss"].backward()
    (whole, _, _), (dropped, _, with_grad) = calls[0], calls[1]
    assert with_grad
    check_channel_dropout(dropped, whole)


# --- where gradients go


@pytest.mark.parametrize("name", ["semsim_minus", "semsim"])
def test_gradients_of_each_loss(name: str) -> None:
    objective = build(name, threshold=0.0, lambda_query=0.5)
    losses = run(objective)
    taught = {
        "loss_supervised": {"encoder", "decoder", "head"},
        "loss_decoder": {"encoder", "decoder", "head"},
        "loss_intra": {"encoder", "decoder", "head", "fusion"},
        "loss_cross": {"encoder", "fusion"},
        "loss_query": {"encoder", "fusion"},
    }
    for loss, parts in taught.items():
        gradients = grads(objective, losses[loss])
        assert {n.removeprefix("network.").split(".")[0] for n, g in gradients.items() if g is not None} == parts
        for part in parts:
            assert any(g is not None and g.any() for n, g in gradients.items() if f"{part}." in n), (loss, part)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fixmatch", {}),
        ("semsim_minus", {}),
        ("semsim", {}),
        ("semsim", {"shared_target": True}),
        ("semsim", {"joint_forward": True}),
        ("semsim", {"gate": "agree", "affinity_space": "probability"}),
    ],
)
def test_nothing_in_the_weak_branch_carries_a_gradient(name: str, options: dict[str, Any]) -> None:
    class Cut(StrongView):
        """Strong views that block the gradient: the rest can only come through the targets."""

        def forward(self, image: Tensor, draws: Draws | None = None) -> MixedView:
            return super().forward(image.detach(), draws)

    objective = build(name, strong=Cut(), threshold=0.0, **options).eval()  # no shared batch statistics
    batch = make_batch()
    batch["image"].requires_grad_()
    batch["unlabeled"].requires_grad_()
    run(objective, batch)["loss"].backward()
    assert batch["image"].grad is not None
    assert batch["image"].grad.any()
    assert batch["unlabeled"].grad is None or not batch["unlabeled"].grad.any()


@pytest.mark.parametrize(
    ("name", "weak"),
    [
        *((name, WeakView("rotate_flip")) for name in SEMI),
        ("semsim_minus", WeakView("flip", shared=True)),
        ("fixmatch", AugmentedView()),
    ],
)
def test_a_compiler_follows_the_whole_step(name: str, weak: WeakView) -> None:
    """Views included, without a break; ``fullgraph`` on a GPU demands it."""
    objective, batch = build(name, weak=weak, dropout=0.5, in_channels=3), make_batch(channels=3)
    torch._dynamo.reset()

    def step(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            return objective(batch)

    found = torch._dynamo.explain(step)(batch)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


# --- SemSim's switches

TABLE_IV = [
    ({"lambda_intra": 0, "lambda_cross": 0}, {"loss_decoder"}),
    ({"lambda_decoder": 0, "lambda_cross": 0}, {"loss_intra"}),
    ({"lambda_decoder": 0, "lambda_intra": 0}, {"loss_cross"}),
    ({"lambda_decoder": 0}, {"loss_intra", "loss_cross"}),
    ({"lambda_cross": 0}, {"loss_intra", "loss_decoder"}),
    ({"lambda_intra": 0}, {"loss_cross", "loss_decoder"}),
    ({}, {"loss_intra", "loss_cross", "loss_decoder"}),
]


@pytest.mark.parametrize(("options", "expected"), TABLE_IV)
def test_table_iv(options: dict[str, float], expected: set[str]) -> None:
    objective = build("semsim", threshold=0.0, **options)
    assert isinstance(objective, SemSim)
    losses = run(objective)
    assert {k for k in losses if k.startswith("loss_")} == expected | {"loss_supervised"}
    assert (objective.fusion is None) == (expected == {"loss_decoder"})
    weights = {"loss_decoder": 0.5, "loss_intra": 0.25, "loss_cross": 0.25}
    total = losses["loss_supervised"] + sum(weights[k] * losses[k] for k in expected)
    torch.testing.assert_close(losses["loss"], total / 2)
    losses["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())


def test_weights_of_figure_7() -> None:
    objective = build("semsim_minus", threshold=0.0, lambda_decoder=1.25, lambda_intra=0.75, lambda_cross=1.0)
    v = values(run(objective))
    total = v["loss_supervised"] + 1.25 * v["loss_decoder"] + 0.75 * v["loss_intra"] + v["loss_cross"]
    assert v["loss"] == pytest.approx(total / 2)


DECODER_ONLY = {"lambda_intra": 0, "lambda_cross": 0}
TABLE_VI: list[tuple[dict[str, Any], tuple[int, int, int]]] = [
    # p^s, p^in, p^cr -> strong views drawn, calls of the decoder, of the fusion module (two of each: labeled, weak)
    ({"decoder_views": [1], "intra_view": 1, "cross_view": 1}, (1, 3, 3)),
    ({"decoder_views": [2], "intra_view": 1, "cross_view": 1}, (2, 4, 3)),
    ({"decoder_views": [1], "intra_view": 1, "cross_view": 2}, (2, 3, 4)),
    ({}, (2, 3, 4)),
    ({"decoder_views": [2], "intra_view": 1, "cross_view": 2}, (2, 4, 4)),
    ({"decoder_views": [3], "intra_view": 1, "cross_view": 2}, (3, 4, 4)),
    ({"decoder_views": [1, 2], **DECODER_ONLY}, (2, 4, 0)),
    ({"decoder_views": [1, 2, 3], **DECODER_ONLY}, (3, 5, 0)),
]


@pytest.mark.parametrize(("options", "expected"), TABLE_VI)
def test_table_vi(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], expected: tuple[int, int, int]) -> None:
    objective = build("semsim_minus", threshold=0.0, **options)
    assert isinstance(objective, SemSim)
    views: list[MixedView] = []
    objective.strong.register_forward_hook(lambda _, __, view: views.append(view))
    fused: list[Tensor] = []
    if objective.fusion is not None:
        objective.fusion.register_forward_hook(lambda _, __, out: fused.append(out))
    encoded = spy(monkeypatch, objective.network, "encode")
    decoded = spy(monkeypatch, objective.network, "decode")
    losses = run(objective)
    assert (len(views), len(decoded), len(fused)) == expected
    assert len(encoded) == len(views) + 2
    # Only the weak branch runs without gradients.
    assert [grad for _, _, grad in encoded].count(False) == 1
    assert [grad for _, _, grad in decoded].count(False) == 1
    losses["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())


def test_decoder_only_rows_take_the_mean_over_their_views() -> None:
    views: list[MixedView] = []
    settings = {"channel_dropout": "none", "weak": WeakView("none"), "threshold": 0.0}
    objective = build("semsim", decoder_views=[1, 2, 3], **DECODER_ONLY, **settings)
    objective.strong.register_forward_hook(lambda _, __, view: views.append(view))
    batch = make_batch()
    found = run(objective, batch)["loss_decoder"].item()
    with torch.no_grad():
        label = objective.network(batch["unlabeled"]).argmax(1)
        everywhere = torch.ones_like(label, dtype=torch.bool)
        each = [dice(objective.network(v.image).softmax(1), paste(v, label), everywhere) for v in views]
    assert len(each) == 3
    assert found == pytest.approx(sum(each) / 3, abs=2e-5)


@pytest.fixture(scope="module")
def default() -> dict[str, float]:
    return values(run(build("semsim_minus", threshold=0.45), make_batch(labeled=3, unlabeled=4)))


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"regions": 1}, {"loss_cross"}),
        ({"regions": 8}, {"loss_cross"}),
        ({"affinity_temperature": 1.0}, {"loss_intra"}),
        ({"affinity_space": "probability"}, {"loss_intra"}),
        ({"query_temperature": 0.5}, {"loss_cross"}),
        ({"uncertainty_rate": 10.0}, {"loss_cross"}),
        ({"gate": "decoder"}, {"loss_cross"}),
        ({"gate": "agree"}, {"loss_cross"}),
        ({"shared_target": True}, {"loss_decoder", "loss_intra", "loss_cross"}),
        ({"channel_dropout": "none"}, {"loss_decoder", "loss_intra", "loss_cross"}),
        ({"channel_dropout": "feature_stream"}, {"loss_decoder", "loss_intra", "loss_cross"}),
        ({"joint_forward": True}, set(PARTS)),
        ({"lambda_query": 0.5}, set()),
        ({"cross_view": 1}, {"loss_cross"}),
        ({"intra_view": 2}, {"loss_intra"}),
        ({"decoder_views": [1, 2]}, {"loss_decoder"}),
    ],
)
def test_each_switch_changes_its_losses_and_no_other(
    default: dict[str, float], options: dict[str, Any], changed: set[str]
) -> None:
    switched = values(run(build("semsim_minus", threshold=0.45, **options), make_batch(labeled=3, unlabeled=4)))
    assert ("loss_query" in switched) == ("lambda_query" in options)
    for part in PARTS:
        same = switched[part] == pytest.approx(default[part], rel=1e-6, abs=1e-9)
        assert same == (part not in changed), part


def check_channel_dropout(dropped: list[Tensor], whole: list[Tensor]) -> None:
    """Every channel is either zero or doubled, about half of them zero."""
    gone = []
    for after, before in zip(dropped, whole, strict=True):
        for a, b in zip(after.flatten(0, 1), before.flatten(0, 1), strict=True):
            torch.testing.assert_close(a, torch.zeros_like(b) if not a.any() else 2 * b)
            gone.append(not a.any())
    assert 0.25 < sum(gone) / len(gone) < 0.75


def test_channel_dropout_of_the_strong_views_reaches_decoder_and_fusion_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("semsim_minus")
    assert isinstance(objective, SemSim)
    encoded = spy(monkeypatch, objective.network, "encode")
    decoded = spy(monkeypatch, objective.network, "decode")
    fused: list[list[Tensor]] = []
    assert objective.fusion is not None
    objective.fusion.register_forward_pre_hook(lambda _, args: fused.append(args[0]))
    run(objective)
    (_, s1, _), (_, s2, _) = encoded[-2:]
    check_channel_dropout(decoded[-1][0], s1)
    check_channel_dropout(fused[-1], s2)
    assert all(torch.equal(a, b) for a, b in zip(decoded[-1][0], fused[-2], strict=True))
    # the weak and the labeled features are unchanged
    originals = [out for _, out, _ in encoded[:2]]
    for seen in [*(argument for argument, _, _ in decoded[:2]), *fused[:2]]:
        assert any(all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True)) for whole in originals)


def test_no_channel_dropout_in_evaluation_mode_or_when_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for objective in (build("semsim_minus").eval(), build("semsim_minus", channel_dropout="none")):
        encoded = spy(monkeypatch, objective.network, "encode")
        decoded = spy(monkeypatch, objective.network, "decode")
        run(objective)
        assert all(torch.equal(a, b) for a, b in zip(decoded[-1][0], encoded[-2][1], strict=True))


def test_feature_stream_is_one_more_term_with_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"threshold": 0.0, "weak": WeakView("none"), "strong": StrongView(0, 0, 0)}
    objective = build("semsim", channel_dropout="feature_stream", **DECODER_ONLY, **settings)
    encoded = spy(monkeypatch, objective.network, "encode")
    decoded = spy(monkeypatch, objective.network, "decode")
    losses = run(objective)
    check_channel_dropout(decoded[-1][0], encoded[0][1])
    assert decoded[-1][0][0].requires_grad
    label = decoded[1][1].argmax(1)  # labeled, weak, S1, stream
    everywhere = torch.ones_like(label, dtype=torch.bool)
    each = [dice(out.detach().softmax(1), label, everywhere) for _, out, _ in decoded[2:]]
    assert len(each) == 2
    assert losses["loss_decoder"].item() == pytest.approx(sum(each) / 2, abs=2e-5)


def test_joint_forward_shares_the_batch_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("semsim_minus", joint_forward=True, weak=WeakView("none"))
    encoded = spy(monkeypatch, objective.network, "encode")
    batch = make_batch(labeled=3, unlabeled=2)
    run(objective, batch)
    assert len(encoded) == 3  # both, S1, S2
    assert torch.equal(encoded[0][0], torch.cat([batch["image"], batch["unlabeled"]]))


def test_literal_query_temperature_leaves_nothing_to_learn_from() -> None:
    batch = make_batch(labeled=3, unlabeled=4)
    for labels in (batch["label"], (batch["label"] > 1).to(torch.uint8)):
        literal = values(run(build("semsim_minus", query_temperature=1.0, lambda_query=0.5), batch | {"label": labels}))
        assert literal["loss_cross"] == 0.0
        assert literal["coverage_cross"] == 0.0
        assert literal["loss_query"] > 0
    assert values(run(build("semsim_minus", threshold=0.8), batch))["loss_cross"] > 0


def test_query_loss_of_one_labelled_image_is_an_attached_zero() -> None:
    objective = build("semsim", lambda_query=0.5, lambda_intra=0, lambda_cross=0)
    losses = run(objective, make_batch(labeled=1))
    assert losses["loss_query"].item() == 0.0
    losses["loss"].backward()
    assert all(p.grad is not None for p in objective.parameters())


def test_query_loss_with_classes_that_only_one_image_or_none_shows() -> None:
    batch = make_batch()
    batch["label"][1] = 0
    batch["label"][0].clamp_(max=2)
    objective = build("semsim", lambda_query=0.5)
    losses = run(objective, batch)
    assert 0 < losses["loss_query"].item() < 100
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


def test_shared_target_may_name_a_class_that_no_labelled_image_shows() -> None:
    batch = make_batch()
    batch["label"].clamp_(max=1)
    objective = build("semsim_minus", shared_target=True, threshold=0.5)
    objective.network.head.bias.data[3] = 20.0
    losses = run(objective, batch)
    assert losses["coverage_cross_foreground"].item() == 1.0
    assert losses["loss_cross"].item() == 0.0
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in objective.parameters())


@pytest.mark.parametrize("options", [{}, {"lambda_cross": 0.0}, {"lambda_decoder": 0.0}, {"lambda_intra": 0.0}])
def test_variants_with_their_defaults_are_the_method(options: dict[str, float]) -> None:
    batch = make_batch()
    found = []
    for defaults in ({}, {"gate": "self"}):
        objective = build("semsim", dropout=0.3, threshold=0.5, **options, **defaults)
        losses = run(objective, batch)
        losses["loss"].backward()
        found.append((type(objective).__name__, losses, [p.grad for p in objective.parameters()]))
    (first, losses, gradients), (second, same_losses, same_gradients) = found
    assert (first, second) == ("SemSim", "SemSimVariants")
    assert losses == same_losses
    for one, other in zip(gradients, same_gradients, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize(
    "options",
    [
        {"gate": "both"},
        {"regions": 0},
        {"uncertainty_rate": -1.0},
        {"channel_dropout": "weak"},
        {"affinity_space": "logits"},
        {"affinity_temperature": 0.0},
        {"query_temperature": -1.0},
        {"lambda_decoder": -0.5},
        {"lambda_query": -1},
        {"decoder_views": []},
        {"decoder_views": [0]},
        {"decoder_views": [4]},
        {"intra_view": 4},
        {"cross_view": 0},
    ],
)
def test_bad_choices_are_refused_with_their_name(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        build("semsim", **options)
