"""What an attention kernel has to be: forward and backward of one call, with the log-sum-exp in and out."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

# Sizes of a part's causal squares; empty for a rectangle, where every query sees every key. See parts.Part.
Squares = tuple[int, ...]


class Kernel(Protocol):
    """Forward and backward of one attention call; h query heads are a multiple of k key-value heads."""

    varlen: bool  # whether one call takes squares of any sizes; else a batch of equal ones
    unlike: bool  # whether values may be narrower than keys; else E = D
    halved: range  # sizes of causal squares that cost more than two of half the size and a rectangle

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, squares: Squares, scaling: float
    ) -> tuple[Tensor, Tensor]:
        """`[B, h, q, D]`, `[B, k, n, D]`, `[B, k, n, E]` → output `[B, h, q, E]` and log-sum-exp `[B, h, q]`.

        Where a call takes several squares, B is 1; else it counts calls of one shape that are done at once.
        """
        ...

    def backward(
        self,
        gradient: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        output: Tensor,
        lse: Tensor,
        squares: Squares,
        scaling: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of query, key and value; output and log-sum-exp are the merged ones."""
        ...
