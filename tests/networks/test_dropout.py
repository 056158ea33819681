from __future__ import annotations

import pytest
import torch
from torch import nn

from scripts.networks import UNet
from scripts.networks.dropout import Dropout, dropout

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rate_and_scale(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.ones(400_003, dtype=dtype)
    y = dropout(x, rate)
    assert y.dtype == dtype
    lost = float((y == 0).float().mean())
    assert lost == pytest.approx(rate, abs=0.0045)  # 1/512 for the byte, three deviations at 0.5
    assert len(y.unique()) == 2
    assert float(y.max()) == pytest.approx(1 / (1 - round(256 * rate) / 256), rel=0.01)
    assert y.float().mean() == pytest.approx(1, abs=0.015)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_is_that_of_what_stays(layout: torch.memory_format) -> None:
    x = (torch.rand(3, 5, 7, 9) + 1).to(memory_format=layout).requires_grad_()
    y = dropout(x, 0.4)
    assert y.is_contiguous(memory_format=layout)
    weight = torch.rand_like(y)
    (y * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight * (y / x).detach())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_are_dropped_one_by_one(layout: torch.memory_format) -> None:
    """Neither neighbours nor the values of a word are lost together, along any axis."""
    torch.manual_seed(0)
    lost = (dropout(torch.ones(16, 16, 64, 64).to(memory_format=layout), 0.5) == 0).float() - 0.5
    for axis in range(4):
        for step in (1, 2, 4, 8):
            assert abs(float((lost * lost.roll(step, axis)).mean())) < 0.25 * 0.01


def test_ends_and_evaluation() -> None:
    x = torch.rand(4, 4)
    assert torch.equal(dropout(x, 0.0), x)
    assert not dropout(x, 1.0).any()
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert not torch.equal(Dropout(0.5)(x), x)


def test_draws_follow_the_seed() -> None:
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(dropout(torch.ones(1000), 0.5))
    assert torch.equal(*results[:2])
    assert not torch.equal(*results[1:])


def test_the_network_uses_it() -> None:
    found = [module for module in UNet().modules() if isinstance(module, nn.Dropout)]
    assert len(found) == 5
    assert all(type(module) is Dropout for module in found)


def test_torchscript_has_pytorchs_dropout() -> None:
    """MONAI's export compiles the network."""
    scripted = torch.jit.script(Dropout(0.5))
    found = scripted(torch.ones(1000))
    assert set(found.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(scripted.eval()(torch.ones(4)), torch.ones(4))
