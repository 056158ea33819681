"""CPC-SAM: each term against a plain reading."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from scripts.methods.cpc_sam import class_points
from scripts.views import WeakView
from tests.methods.common import build, make_batch, needs_sam, run, supervised_loss, values


def loss(logits: Tensor, label: Tensor) -> float:
    return float(supervised_loss(logits, label))


def border_distance(mask: Tensor, y: int, x: int) -> int:
    """Steps to any of eight neighbours until outside of the mask; beyond the image is outside."""
    height, width = mask.shape
    outside = [(a, b) for a in range(-1, height + 1) for b in range(-1, width + 1)]
    outside = [(a, b) for a, b in outside if not (0 <= a < height and 0 <= b < width) or not mask[a, b]]
    return min(max(abs(a - y), abs(b - x)) for a, b in outside)


def test_points_lie_innermost_and_anywhere_in_their_class() -> None:
    torch.manual_seed(0)
    label = torch.zeros(2, 12, 15, dtype=torch.long)
    label[0, 2:9, 3:8], label[0, 10, 12] = 1, 2
    label[1, 4:11, 6:15] = 3
    logits = torch.nn.functional.one_hot(label, 4).movedim(-1, 1).float()
    drawn = set()
    for _ in range(20):
        inner, anywhere = class_points(logits)
        for number, points in enumerate((inner, anywhere)):
            for b in range(2):
                for c in range(4):
                    x, y = (int(v) for v in points.places[b, c] * torch.tensor([15, 12]))
                    if not (label[b] == c).any():
                        assert points.classes[b, c] == 0
                        assert torch.equal(points.places[b, c], points.places[b, 0])
                        continue
                    assert points.classes[b, c] == c == label[b, y, x]
                    torch.testing.assert_close(points.places[b, c], torch.tensor([(x + 0.5) / 15, (y + 0.5) / 12]))
                    mask = label[b] == c
                    if number == 0:
                        deepest = max(border_distance(mask, *map(int, place)) for place in mask.nonzero())
                        assert border_distance(mask, y, x) == deepest
                    elif (b, c) == (0, 1):
                        drawn.add((y, x))
    assert len(drawn) > 5


@needs_sam
def test_against_its_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    objective = build("cpc_sam", weak=WeakView("none"))
    batch = make_batch()
    drawn: list[Any] = []

    def points(logits: Tensor) -> Any:
        drawn.append((logits.detach(), class_points(logits)))
        return drawn[-1][1]

    monkeypatch.setattr("scripts.methods.cpc_sam.class_points", points)
    found = values(run(objective, batch))
    label, sam = batch["label"][:, 0].long(), objective.network
    with torch.no_grad():
        embedding = sam.encode(torch.cat([batch["image"], batch["unlabeled"]]))
        free = [sam.decode(embedding, (32, 32), decoder=d) for d in (sam.decoder, objective.second)]
        prompted, unprompted, stability = 0.0, 0.0, 0.0
        for prompter, (decoder, (seen, both)) in enumerate(zip((objective.second, sam.decoder), drawn, strict=True)):
            torch.testing.assert_close(seen, free[prompter])
            q, r = (sam.decode(embedding, (32, 32), sam.prompt(*p), decoder) for p in both)
            target = ((q.softmax(1) + r.softmax(1)) / 2).argmax(1)[2:]
            prompted += loss(q[:2], label) + loss(r[:2], label)
            unprompted += loss(free[prompter][2:], target)
            stability += loss(r[2:], target)
    supervised = loss(free[0][:2], label) + loss(free[1][:2], label)
    assert found == pytest.approx(
        {
            "loss": supervised + prompted + 0.4 * unprompted + 0.05 * stability,
            "loss_supervised": supervised,
            "loss_prompted": prompted,
            "loss_unprompted": unprompted,
            "loss_stability": stability,
        },
        rel=1e-4,
    )


@needs_sam
def test_prompts_begin_after_the_warm_up() -> None:
    objective = build("cpc_sam", warm_up=0.3)
    for iteration in (29, 30):
        objective.iteration = iteration
        losses = run(objective)
        assert ("loss_prompted" in losses) is (iteration >= 30)
        losses["loss"].backward()
        assert all(p.grad is not None for p in objective.parameters() if p.requires_grad)


@needs_sam
def test_the_decoders_differ_in_what_tells_the_classes_apart() -> None:
    objective = build("cpc_sam")
    first, second = objective.network.decoder.state_dict(), objective.second.state_dict()
    assert first.keys() == second.keys()
    for name, value in first.items():
        own = name.startswith(("mask_tokens", "output_hypernetworks_mlps"))
        assert own != torch.equal(value, second[name]), name


@needs_sam
def test_random_weights_are_said_aloud(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        build("cpc_sam")
    assert "RANDOM weights" in caplog.text
    caplog.clear()
    network = build("cpc_sam").network
    caplog.clear()
    network.begins_with = "pretrained weights"
    type(build("cpc_sam"))(network=network)
    assert caplog.text.count("RANDOM") == 1  # of the build alone


@needs_sam
@torch.no_grad()
def test_pseudo_labels() -> None:
    objective = build("cpc_sam", weak=WeakView("none")).eval()
    views = objective.weak_views(make_batch())
    found = objective.pseudo_labels(views)
    assert list(found) == ["decoder", "prompted"]
    assert torch.equal(found["decoder"].label, objective.network(views.unlabeled).argmax(1))
    assert found["prompted"].label.shape == (3, 32, 32)


@needs_sam
@pytest.mark.parametrize("options", [{"warm_up": 1.5}, {"consistency_weight": -1.0}, {"prompt_weight": -1.0}])
def test_options_are_checked(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        build("cpc_sam", **options)
