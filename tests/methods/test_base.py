"""The base class of the objectives: a supervised start, and a teacher of the pseudo-labels."""

from __future__ import annotations

import pytest
import torch

from scripts.methods import SemSimVariants
from scripts.views import WeakView
from tests.methods.common import METHODS, build, make_batch, thin_network


@pytest.mark.parametrize("name", METHODS)
def test_supervised_start_is_the_supervised_loss_of_all_learners(name: str) -> None:
    """Loss and gradients are those of L_s on the labeled images; the gradients of other parts are 0, not None."""
    objective, batch = build(name, weak=WeakView("none")), make_batch()
    objective.supervised_iterations = 31
    losses = objective(batch)
    losses["loss"].backward()
    assert list(losses) == ["loss"]
    expected = torch.stack(
        [objective.supervised_loss(network(batch["image"]), batch["label"][:, 0]) for network in objective.learners()]
    ).mean()
    assert losses["loss"].item() == pytest.approx(expected.item(), rel=1e-5)
    learned = {id(p) for network in objective.learners() for p in network.parameters()}
    for parameter in objective.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert id(parameter) in learned or not parameter.grad.any()
    assert any(p.grad is not None and p.grad.any() for p in objective.network.parameters())


@pytest.mark.parametrize("name", ["fixmatch", "semsim"])
def test_unlabeled_losses_follow_the_supervised_start(name: str) -> None:
    objective, batch = build(name), make_batch()
    objective.supervised_iterations = 30
    assert len(objective(batch)) > 1


@pytest.mark.parametrize("name", ["fixmatch", "unimatch", "semsim", "semsim_minus"])
def test_the_teacher_makes_the_pseudo_labels(name: str) -> None:
    """They equal those of an objective with the teacher as its network, without dropout; the teacher is updated."""
    batch = make_batch(seed=3)
    taught = build(name, weak=WeakView("none"), teacher_decay=0.9, dropout=0.5)
    views = taught.weak_views(batch)
    torch.manual_seed(0)
    found = taught.pseudo_labels(views)["decoder"]
    expected = taught.teacher.module(batch["unlabeled"]).softmax(dim=1)  # in training mode, yet it has no dropout
    assert torch.equal(found.label, expected.argmax(dim=1))
    torch.testing.assert_close(found.confidence, expected.amax(dim=1))
    losses = taught(batch)
    losses["loss"].backward()
    assert all(p.grad is None for p in taught.teacher.parameters())
    own = build(name, weak=WeakView("none"), dropout=0.5)
    assert not torch.equal(own.pseudo_labels(views)["decoder"].confidence, found.confidence)

    taught.after_step()
    taught.network.head.bias.data += 1.0
    before = taught.teacher.module.head.bias.clone()
    taught.after_step()
    torch.testing.assert_close(taught.teacher.module.head.bias, before + 0.1)


@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_fusion_reads_the_stages_of_encoder_or_decoder(kind: str) -> None:
    """Stages 1 to 5, finest first, with the encoder's widths and sizes."""
    seen: list[list[torch.Tensor]] = []

    class Recorder(torch.nn.Module):
        def forward(self, stages: list[torch.Tensor]) -> torch.Tensor:
            seen.append(stages)
            return stages[2]

    network = thin_network()
    objective = SemSimVariants(network=network, fusion=Recorder(), features=kind, weak=WeakView("none"))
    batch = make_batch()
    losses = objective(batch)
    encoded = network.encode(batch["image"])
    shapes = [f.shape[1:] for f in encoded]
    assert len(seen) == 4  # labeled, weak, S1, S2
    for stages in seen:
        assert [f.shape[1:] for f in stages] == shapes
    expected = encoded if kind == "encoder" else [*reversed(network.decode_levels(encoded)), encoded[-1]]
    for found, wanted in zip(seen[0], expected, strict=True):
        torch.testing.assert_close(found, wanted)
    (losses["loss_intra"] + losses["loss_cross"]).backward()
    trained = network.decoder[0].block[0].weight.grad
    assert trained is not None
    assert trained.any()


def test_a_feature_stream_has_no_teacher() -> None:
    with pytest.raises(ValueError, match="feature_stream"):
        build("semsim_minus", channel_dropout="feature_stream", teacher_decay=0.9)
