"""Scaled dot-product attention that never holds all scores: PyTorch's fused kernel, on a CPU our own over chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import register_flop_formula

__all__ = ["attention"]

CHUNK = 1_100_000
"""Most scores made at a time: 2 MiB in bf16, which a core's cache holds. A fusion module's head at 224 px has fewer."""


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """``softmax(scale Q K^T) V`` over the last two dimensions, once differentiable, in the inputs' dtype.

    On a CPU the fused kernel's backward pass is slow in bf16, and it wants values as wide as the queries; matrix
    products over chunks that fit the cache are faster.

    Args:
        query: ``[..., L, D]``.
        key: ``[..., M, D]`` of the same leading dimensions, dtype and device.
        value: ``[..., M, Dv]``, likewise.
        scale: factor of the scores, an inverse temperature.

    Returns:
        ``[..., L, Dv]``.
    """
    if query.device.type != "cpu":
        return _fused(query, key, value, scale)
    flat = (x.reshape(-1, *x.shape[-2:]).contiguous() for x in (query, key, value))
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _chunked(*flat, scale)
    return out.view(*query.shape[:-1], value.shape[-1])


def _fused(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    # With unequal widths, or a last dimension of another stride than 1, PyTorch would hold all scores.
    width = max(query.shape[-1], value.shape[-1])
    q, k, v = (F.pad(x, (0, width - x.shape[-1])).contiguous() for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., : value.shape[-1]]


def _values(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention over ``[N, L, D]``; the backward pass makes each chunk's scores again."""
    out = query.new_empty(*query.shape[:-1], value.shape[-1])
    for batch, rows in _chunks(query, key):
        weights = _weights(query[batch, rows], key[batch], scale)
        torch.bmm(weights, value[batch], out=out[batch, rows])
    return out


def _gradients(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    grads = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for batch, rows in _chunks(query, key):
        q, k, g = query[batch, rows], key[batch], grad[batch, rows]
        of_query, of_key, of_value = grads[0][batch, rows], grads[1][batch], grads[2][batch]
        weights = _weights(q, k, scale)
        of_weights = torch.bmm(g, value[batch].mT)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        torch.baddbmm(of_query, of_scores, k, beta=0, alpha=scale, out=of_query)
        torch.baddbmm(of_key, of_scores.mT, q, alpha=scale, out=of_key)
        torch.baddbmm(of_value, weights.mT, g, out=of_value)
    return grads


# To a compiler the chunks are one operation.
_chunked = torch.library.custom_op("semsim::attention", _values, mutates_args=())
_chunked_backward = torch.library.custom_op("semsim::attention_backward", _gradients, mutates_args=())


@_chunked.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


@_chunked_backward.register_fake
def _(grad: Tensor, query: Tensor, key: Tensor, value: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_chunked_backward(grad.contiguous(), *ctx.saved_tensors, ctx.scale), None


_chunked.register_autograd(_backward, setup_context=_keep)


@register_flop_formula(torch.ops.semsim.attention)
def _flops(query: Any, key: Any, value: Any, scale: float, **_: Any) -> int:
    """Of two products of a batch of matrices, given shapes: 2 FLOPs per multiplication and addition."""
    count, length, width = query
    return 2 * count * length * int(key[1]) * (width + int(value[2]))


@register_flop_formula(torch.ops.semsim.attention_backward)
def _flops_backward(grad: Any, query: Any, key: Any, value: Any, scale: float, **_: Any) -> int:
    """Of five products: the scores anew, and the gradients of values, weights, queries and keys."""
    count, length, width = query
    return 2 * count * length * int(key[1]) * (3 * width + 2 * int(value[2]))


def _weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    # beta 0 leaves the first operand unread; alpha acts before the products are rounded
    return torch.baddbmm(query.new_empty(()), query, key.mT, beta=0, alpha=scale).softmax(dim=-1)


def _chunks(query: Tensor, key: Tensor) -> list[tuple[slice, slice]]:
    """Pieces of the batch or, where one element's scores are too many already, even pieces of its rows."""
    count, length = query.shape[:2]
    scores = length * key.shape[1]
    several = max(1, CHUNK // scores)
    rows = -(-length // -(-scores // CHUNK)) if several == 1 else length
    return [
        (slice(i, i + several), slice(r, r + rows)) for i in range(0, count, several) for r in range(0, length, rows)
    ]
