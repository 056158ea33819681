"""Scaled dot-product attention in constant memory: PyTorch's fused kernel, on a CPU our own over chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

__all__ = ["attention"]

CHUNK = 1_100_000
"""Maximum number of scores in memory: 2 MiB in bf16, which fits a core's cache. A fusion head at 224 px has fewer."""


def attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """``softmax(scale Q K^T) V`` over the last two dimensions, once differentiable, in the inputs' dtype.

    On a CPU the fused kernel's backward pass is slow in bf16 and requires values as wide as the queries; matrix
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
    # With unequal widths, or a last dimension whose stride is not 1, PyTorch would store all scores.
    width = max(query.shape[-1], value.shape[-1])
    q, k, v = (F.pad(x, (0, width - x.shape[-1])).contiguous() for x in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[..., : value.shape[-1]]


def _values(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention over ``[N, L, D]``; the backward pass recomputes each chunk's scores."""
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


def _weights(query: Tensor, key: Tensor, scale: float) -> Tensor:
    # with beta 0 the first operand is not read; alpha applies before the products are rounded
    return torch.baddbmm(query.new_empty(()), query, key.mT, beta=0, alpha=scale).softmax(dim=-1)


def _chunks(query: Tensor, key: Tensor) -> list[tuple[slice, slice]]:
    """Chunks of the batch or, if one element has too many scores, equal chunks of its rows."""
    count, length = query.shape[:2]
    scores = length * key.shape[1]
    several = max(1, CHUNK // scores)
    rows = -(-length // -(-scores // CHUNK)) if several == 1 else length
    return [
        (slice(i, i + several), slice(r, r + rows)) for i in range(0, count, several) for r in range(0, length, rows)
    ]
