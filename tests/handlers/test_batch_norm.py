from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn

from scripts.data import SliceDataset
from scripts.handlers.batch_norm import PreciseBatchNorm, average_statistics
from scripts.networks import UNet


class Slices:
    """A dataset with slices of constant value, their number; the even ones are labelled."""

    def __init__(self, count: int) -> None:
        self.labeled = np.arange(0, count, 2)
        self.unlabeled = np.arange(1, count, 2)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": torch.full((1, 8, 8), float(index))}


def network(dropout: float = 0.0) -> UNet:
    torch.manual_seed(0)
    return UNet(num_classes=3, channels=(2, 3, 4), dropout=dropout)


def norms(net: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]


def test_averages_are_those_of_a_plain_loop() -> None:
    """Each layer normalises by the batch; its statistics are averaged over the batches."""
    net = network()
    batches = [torch.rand(4, 1, 16, 16) * (i + 1) for i in range(3)]
    seen: dict[int, list[np.ndarray]] = {}
    hooks = [
        norm.register_forward_pre_hook(lambda _, x, i=i: seen.setdefault(i, []).append(x[0].detach().double().numpy()))
        for i, norm in enumerate(norms(net))
    ]
    net.train()
    for batch in batches:
        net(batch)  # the handler must average without dropout
    for hook in hooks:
        hook.remove()
    average_statistics(net, batches)
    for i, norm in enumerate(norms(net)):
        channels = [np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) for x in seen[i]]
        mean = np.mean([[c.sum() / c.size for c in x] for x in channels], axis=0)
        variance = np.mean([[((c - c.mean()) ** 2).sum() / (c.size - 1) for c in x] for x in channels], axis=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        np.testing.assert_allclose(norm.running_mean.numpy(), mean, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=1e-4, atol=1e-6)


def test_dropout_is_off_and_nothing_else_changes() -> None:
    batches = [torch.rand(4, 1, 16, 16) for _ in range(2)]
    plain, dropping = network(), network(dropout=0.5)
    weights = {name: p.clone() for name, p in dropping.named_parameters()}
    for net in (plain.train(), dropping.train()):
        average_statistics(net, batches)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), dropping.buffers(), strict=True))
    assert all(torch.equal(p, weights[name]) for name, p in dropping.named_parameters())
    assert {norm.momentum for norm in norms(dropping)} == {0.1}
    assert not any(module.training for module in dropping.modules())


@pytest.mark.parametrize(("unlabeled", "learned"), [(True, set(range(50))), (False, set(range(0, 50, 2)))])
def test_only_slices_that_the_objective_learns_from(unlabeled: bool, learned: set[int]) -> None:
    handler = PreciseBatchNorm(nn.Identity(), cast(SliceDataset, Slices(50)))
    parts = list(handler._batches(unlabeled, torch.device("cpu")))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1, "every batch weighs the same"
    assert max(sizes) <= handler.batch_size
    assert sorted(torch.cat(parts)[:, 0, 0, 0].int().tolist()) == sorted(learned)


def test_a_large_set_is_drawn_from_and_always_alike() -> None:
    def drawn() -> list[int]:
        handler = PreciseBatchNorm(nn.Identity(), cast(SliceDataset, Slices(1000)), slices=40)
        return [int(x) for part in handler._batches(True, torch.device("cpu")) for x in part[:, 0, 0, 0]]

    assert len(set(drawn())) == 40
    assert drawn() == drawn()
    assert len({index % 2 for index in drawn()}) == 2, "labelled and unlabelled ones"


def test_handler_works_at_the_end_of_every_epoch() -> None:
    net = network()
    engine: Any = Engine(lambda *_: None)
    engine.state.device, engine.dtype = torch.device("cpu"), None
    engine.objective = SimpleNamespace(requires_unlabeled=True)
    PreciseBatchNorm(net, cast(SliceDataset, Slices(20))).attach(engine)
    first: list[Tensor] = []

    @engine.on(Events.EPOCH_STARTED)
    def spoil() -> None:
        for norm in norms(net):
            assert norm.running_mean is not None
            norm.running_mean.fill_(float("nan"))

    @engine.on(Events.EPOCH_COMPLETED)
    def collect() -> None:
        averages = norms(net)[0].running_mean
        assert averages is not None
        first.append(averages.clone())

    engine.run([0], max_epochs=2)
    assert len(first) == 2
    assert first[0].isfinite().all()
    assert torch.equal(*first)
