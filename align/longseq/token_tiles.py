"""Where a row of tokens is cut into tiles, and what of a layer's arguments belongs to one of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


@dataclass(frozen=True)
class Tiles:
    """Where a row of tokens is cut: 10 tokens in 3 tiles at 0, 3, 6 and 10.

    Attributes:
        tokens: of the row, and at least one a tile: a row of 2 tokens in 3 tiles counts 3, its last one twice.
        bounds: of each tile its first token and the one after its last.
    """

    tokens: int
    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokens: int, count: int) -> Tiles:
        """A row cut into `count` tiles of as many tokens, but for one."""
        tokens = max(tokens, count)
        cuts = [tokens * tile // count for tile in range(count + 1)]
        return cls(tokens, tuple(pairwise(cuts)))

    def cut(self, states: Tensor, dim: int) -> tuple[Tensor, ...]:
        """`states` of all tokens, which lie along `dim`, as one view a tile."""
        return self.pad(states, dim).split([stop - start for start, stop in self.bounds], dim=dim)

    def pad(self, states: Tensor, dim: int) -> Tensor:
        """`states` with its last token repeated, where a row has fewer tokens than there are tiles.

        What is true of a token (a mask of bools, such as which tokens count) is not of its repetitions.
        """
        missing = self.tokens - states.shape[dim]
        if not missing:
            return states
        last = states.narrow(dim, states.shape[dim] - 1, 1)
        if states.dtype == torch.bool:
            last = torch.zeros_like(last)
        return torch.cat([states, *[last] * missing], dim)


def of_tile(values: Any, tokens: int, tiles: Tiles, start: int, stop: int) -> Any:
    """Keywords or arguments for one tile: of tensors `[·, T, …]`, such as position embeddings, its `start` … `stop`.

    So too of `[·, 1, T, …]`, a factor for each token and all heads (BEAM).
    """

    def cut(value: Tensor) -> Tensor:
        if has_tokens(value, tokens):
            return tiles.pad(value, 1)[:, start:stop]
        if value.dim() > 2 and value.shape[1] == 1 and value.shape[2] == tokens:
            return tiles.pad(value, 2)[:, :, start:stop]
        return value

    return tree_map_only(Tensor, cut, values)


def has_tokens(value: Any, tokens: int) -> bool:
    """Whether it is a tensor `[·, tokens, …]`."""
    return isinstance(value, Tensor) and value.dim() >= 2 and value.shape[1] == tokens
