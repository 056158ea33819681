"""Attention over chunks against softmax(s Q K^T) V with all scores at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scripts.networks import attention as module
from scripts.networks.attention import attention
from tests.memory import LargestTensor

CHUNKS = [1, 40, 7 * 11, 2 * 7 * 11, 10**6]  # a row, some rows, an element, two, all


def tensors(dtype: torch.dtype, value_width: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Strided queries, keys and values of 3 x 2 sequences, like those of a joint projection."""
    generator = torch.Generator().manual_seed(0)
    shapes = (3, 7, 2, 4), (3, 11, 2, 4), (3, 11, 2, value_width)
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).transpose(1, 2) for shape in shapes)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (scale * q @ k.transpose(-1, -2)).softmax(-1) @ v


@pytest.mark.parametrize("chunk", CHUNKS)
def test_values_and_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    ours, theirs = ([x.requires_grad_() for x in tensors(torch.float64)] for _ in range(2))
    found, expected = attention(*ours, scale=1.7), reference(*theirs, 1.7)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_one_tensor_for_queries_and_keys_gets_both_gradients() -> None:
    q, _, _ = tensors(torch.float64)
    assert torch.autograd.gradcheck(lambda x: attention(x, x, x, scale=0.5), q.requires_grad_())


@pytest.mark.parametrize("chunk", CHUNKS)
def test_bf16_under_autocast(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    ours = [x.requires_grad_() for x in tensors(torch.bfloat16)]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(*ours, scale=1.0)
        found.float().square().sum().backward()
    assert found.dtype == torch.bfloat16
    expected = reference(*theirs, 1.0)
    expected.square().sum().backward()
    torch.testing.assert_close(found.double(), expected, rtol=0.03, atol=0.03)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.grad - b.grad).norm() < 0.03 * b.grad.norm()


def test_autocast_leaves_float32_as_it_is() -> None:
    given = tensors(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(*given, scale=1.0)
    torch.testing.assert_close(found, reference(*given, 1.0))


@pytest.mark.parametrize("value_width", [3, 4, 9])
def test_fused_kernel_of_other_devices(value_width: int) -> None:
    given = tensors(torch.float32, value_width)
    torch.testing.assert_close(module._fused(*given, 0.7), reference(*given, 0.7))
    elsewhere = attention(*(x.to("meta") for x in given), scale=0.7)
    assert elsewhere.is_meta
    assert elsewhere.shape == (3, 2, 7, value_width)


@pytest.mark.parametrize("value_width", [4, 8, 16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_fused_kernel_never_holds_all_scores(value_width: int, channels_last: bool) -> None:
    widths = 8, 8, value_width
    given = [torch.rand(1, 1, *((100, w) if channels_last else (w, 100)), requires_grad=True) for w in widths]
    if not channels_last:
        given = [x.transpose(2, 3) for x in given]
    with LargestTensor() as record:
        module._fused(*given, 1.0).sum().backward()
    assert record.largest == 100 * max(widths)
    with LargestTensor() as record:
        reference(*given, 1.0)
    assert record.largest == 100 * 100


def test_gradients_are_not_differentiated_again() -> None:
    q, k, v = (x.requires_grad_() for x in tensors(torch.float64))
    (grad,) = torch.autograd.grad(attention(q, k, v, scale=1.0).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        grad.sum().backward()
