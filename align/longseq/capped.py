"""Attention with soft-capped scores, `c · tanh(s / c)`, in products of torch: any device, where no kernel has the cap.

Some queries at a time, so that only their scores exist, in fp32 at least. Slower than a fused kernel, pair by pair, but
a shared prompt is still computed once.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SCORES = 2**24  # of one block of queries, in all heads of a batch: 64 MB in fp32


class CappedKernel:
    """A `kernels.Kernel` with a cap on scores.

    Args:
        softcap: c > 0.
    """

    varlen = False
    unlike = False
    halved = range(0)

    def __init__(self, softcap: float) -> None:
        self._cap = softcap

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: tuple[int, ...], scaling: float
    ) -> tuple[Tensor, Tensor]:
        """See `kernels.Kernel`."""
        output, lse = torch.empty_like(query), query.new_empty(query.shape[:3], dtype=_precision(query))
        for rows, keys in _blocks(query, key, squares):
            scores, _ = self._scores(query[:, :, rows], key[:, :, :keys], rows, squares, scaling)
            lse[:, :, rows] = scores.logsumexp(4).flatten(1, 2)
            weights = (scores - _grouped(lse[:, :, rows, None], key)).exp()
            output[:, :, rows] = (weights @ _wide(value[:, :, :keys])).flatten(1, 2).to(query.dtype)
        return output, lse

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        squares: tuple[int, ...],
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """See `kernels.Kernel`."""
        grad_query = torch.empty_like(query)
        grad_key, grad_value = (torch.zeros_like(one, dtype=_precision(query)) for one in (key, value))
        for rows, keys in _blocks(query, key, squares):
            scores, slope = self._scores(query[:, :, rows], key[:, :, :keys], rows, squares, scaling)
            weights = (scores - _grouped(lse[:, :, rows, None], key)).exp()
            outer = _grouped(gradient[:, :, rows].to(weights.dtype), key)
            moved = (outer * _grouped(output[:, :, rows].to(weights.dtype), key)).sum(4, keepdim=True)
            of_scores = (
                weights * (outer @ _wide(value[:, :, :keys]).transpose(3, 4) - moved) * slope * scaling
            )
            grad_query[:, :, rows] = (of_scores @ _wide(key[:, :, :keys])).flatten(1, 2).to(query.dtype)
            inner = _grouped(query[:, :, rows].to(weights.dtype), key)
            grad_key[:, :, :keys] += (of_scores.transpose(3, 4) @ inner).sum(2)
            grad_value[:, :, :keys] += (weights.transpose(3, 4) @ outer).sum(2)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype)

    def _scores(
        self, query: Tensor, key: Tensor, rows: slice, squares: tuple[int, ...], scaling: float
    ) -> tuple[Tensor, Tensor]:
        """Capped scores `[B, k, g, q, n]`, −∞ where a query does not see a key, and the cap's slope there."""
        bounded = (
            _grouped(query.to(_precision(query)), key) @ _wide(key).transpose(3, 4) * scaling / self._cap
        ).tanh()
        scores = bounded * self._cap
        if squares:
            places = torch.arange(key.shape[2], device=key.device)
            scores = scores.masked_fill(places > places[rows, None], -torch.inf)
        return scores, 1 - bounded.square()


def _blocks(query: Tensor, key: Tensor, squares: tuple[int, ...]) -> Iterator[tuple[slice, int]]:
    """Queries that are attended at once, and how many keys, from the first on, the last of them sees."""
    length = query.shape[2]
    size = max(1, SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    for start in range(0, length, size):
        stop = min(start + size, length)
        yield slice(start, stop), stop if squares else key.shape[2]


def _precision(states: Tensor) -> torch.dtype:
    return torch.promote_types(states.dtype, torch.float32)


def _grouped(states: Tensor, key: Tensor) -> Tensor:
    """`[B, h, …]` → `[B, k, h / k, …]`: the query heads of each KV head together."""
    return states.unflatten(1, (key.shape[1], -1))


def _wide(states: Tensor) -> Tensor:
    """Keys or values `[B, k, n, D]` → `[B, k, 1, n, D]`, in fp32 at least."""
    return states.to(_precision(states))[:, :, None]
