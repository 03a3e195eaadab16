"""A decoder layer over tiles of tokens: all of it that works token by token, which is all but attention.

The layer's own forward runs for each tile as far as its attention, which hands out the tile's queries, keys and
values; attention runs once, over all tokens; then the forward runs again for each tile, with the tile's part of
the attention's output in place of attention. Each run is checkpointed: of norms, projections and MLP nothing
longer than a tile exists, forward or backward (the idea of ALST's tiled MLP, arXiv:2506.13996, section 3.1.1,
widened to the whole layer). It costs the query, key and value projections twice.

Autograd adds up a weight's gradient over the tiles before it reaches the weight, so that wrappers that act when
a gradient is there (DDP, FSDP, ZeRO) see it once.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from align.core.errors import UserError
from align.longseq.attention import Attend, PreparedLayout


class _AttentionReached(Exception):  # noqa: N818 - no error: it ends a forward early
    """Ends a layer's forward at its attention, and carries the queries, keys and values out of it."""

    def __init__(self, states: tuple[Tensor, Tensor, Tensor], attend: Attend) -> None:
        super().__init__()
        self.states, self.attend = states, attend


def _hand_out(query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
    """Stands in the place of the exchange: attends to nothing, and ends the layer's forward with what came.

    In the forward over a tile of 512 tokens it raises `_AttentionReached` with their queries `[1, H, 512, D]`, their
    keys and their values, and nothing behind attention is computed.
    """
    raise _AttentionReached((query, key, value), attend)


class Recomputing:
    """A context that tells whether it is entered: `active` is True while a checkpointed layer is recomputed."""

    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self.inner, self.active = inner, False

    def __enter__(self) -> None:
        self.active = True
        self.inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.active = False
        self.inner.__exit__(*error)


@dataclass(frozen=True)
class _Tiles:
    """Where a row of tokens is cut: 10 tokens in 3 tiles at 0, 3, 6 and 10.

    Attributes:
        tokens: of the row, and at least one a tile: a row of 2 tokens in 3 tiles counts 3, its last one twice.
        bounds: of each tile its first token and the one after its last.
    """

    tokens: int
    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokens: int, count: int) -> _Tiles:
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


def tiled_layer(layer: partial[Tensor], hidden: Tensor, *, size: int, recomputing: Recomputing) -> Tensor:
    """What `layer(hidden)` returns, computed a tile at a time; runs within the checkpoint that recomputes the layer.

    2,000 tokens with a `size` of 512 are 4 tiles of 500: the layer runs on each as far as attention, attention runs
    once over all 2,000, and the layer runs on each tile again with its 500 rows of attention's output given.

    Args:
        layer: the decoder layer's forward with its keywords, `layout` among them.
        hidden: `[1, T, H]`.
        size: tokens of a tile.
        recomputing: entered while the checkpoint recomputes the layer.
    """
    layout: PreparedLayout = layer.keywords["layout"]
    tokens = hidden.shape[1]
    count = math.ceil((layout.most_tokens or tokens) / size)
    if count <= 1:
        return layer(hidden)
    tiles = _Tiles.of(tokens, count)
    cut_keywords = partial(_cut_keywords, layer.keywords, tokens, tiles)
    layers = [partial(layer, **cut_keywords(start, stop)) for start, stop in tiles.bounds]
    hiddens = tiles.cut(hidden, 1)
    (query, key, value), attend = _project(layers, hiddens, layout)
    output = layout.exchange(query[:, :, :tokens], key[:, :, :tokens], value[:, :, :tokens], attend)
    del query, key, value
    outputs = tiles.cut(output, 2)
    del output
    # The recomputation only has to bring back what each tile's checkpoint starts from.
    finish = _skip if recomputing.active else _finish
    finished = [
        checkpoint(partial(finish, tile_layer, layout), own, attended, use_reentrant=False)
        for tile_layer, own, attended in zip(layers, hiddens, outputs, strict=True)
    ]
    return torch.cat(finished, dim=1)[:, :tokens]


def _cut_keywords(
    keywords: dict[str, Any], tokens: int, tiles: _Tiles, start: int, stop: int
) -> dict[str, Any]:
    """The layer's keywords for one tile: of tensors `[·, T, …]`, such as position embeddings, its `start` … `stop`."""

    def cut(value: Tensor) -> Tensor:
        if value.dim() < 2 or value.shape[1] != tokens:
            return value
        return tiles.pad(value, 1)[:, start:stop]

    return {name: tree_map_only(Tensor, cut, value) for name, value in keywords.items()}


def _project(
    layers: list[partial[Tensor]], hiddens: tuple[Tensor, ...], layout: PreparedLayout
) -> tuple[list[Tensor], Attend]:
    """The first step: each tile as far as attention, so that all tokens' queries, keys and values can meet there.

    Args:
        layers: the layer with each tile's keywords.
        hiddens: `[1, tile, H]` each.
        layout: of the row.

    Returns:
        Queries, keys and values `[1, h, T, D]` of all tokens, and the function by which the layer attends.
    """
    attends: list[Attend] = []

    def project(layer: partial[Tensor], hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        states, attend = _run_to_attention(layer, hidden, layout)
        attends.append(attend)
        return states

    tiles = [
        checkpoint(partial(project, layer), hidden, use_reentrant=False)
        for layer, hidden in zip(layers, hiddens, strict=True)
    ]
    queries, keys, values = (list(states) for states in zip(*tiles, strict=True))
    del tiles
    return [_join(states) for states in (queries, keys, values)], attends[0]


def _run_to_attention(
    layer: partial[Tensor], hidden: Tensor, layout: PreparedLayout
) -> tuple[tuple[Tensor, Tensor, Tensor], Attend]:
    """Queries, keys and values `[1, h, tile, D]` that the layer hands to its attention, and how it would attend."""
    try:
        layer(hidden, layout=replace(layout, exchange=_hand_out))
    except _AttentionReached as reached:
        return reached.states, reached.attend
    raise UserError(
        f"{type(layer.args[0]).__name__} does without attention, which memory.mlp_chunk cannot tile: "
        "set memory.mlp_chunk=null."
    )


def _join(tiles: list[Tensor]) -> Tensor:
    """The tiles one after the other, `[1, h, T, D]`; the list is emptied, so that no second copy of them stays."""
    joined = torch.cat(tiles, dim=2)
    tiles.clear()
    return joined


def _finish(layer: partial[Tensor], layout: PreparedLayout, hidden: Tensor, attended: Tensor) -> Tensor:
    """The last step: the layer's output for one tile, with `attended` in the place of what attention would give."""
    return layer(hidden, layout=replace(layout, exchange=lambda query, key, value, attend: attended))


def _skip(layer: partial[Tensor], layout: PreparedLayout, hidden: Tensor, attended: Tensor) -> Tensor:
    """In the place of `_finish` while the layer is recomputed, where nobody reads the output."""
    return hidden
