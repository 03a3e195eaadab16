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
from collections.abc import Callable
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

Layer = Callable[..., Tensor]


class _AttentionReached(Exception):  # noqa: N818 - no error: it ends a run early
    """Ends a run of the layer at its attention."""

    def __init__(self, states: tuple[Tensor, Tensor, Tensor], attend: Attend) -> None:
        super().__init__()
        self.states, self.attend = states, attend


def _hand_out(query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
    """An exchange that goes no further."""
    raise _AttentionReached((query, key, value), attend)


class Recomputing:
    """A context that remembers whether it is entered: around the recomputation of a checkpointed layer."""

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
    """Where a row of tokens is cut; `tokens` counts the copies of the last one that pad a row below one a tile."""

    tokens: int
    bounds: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, tokens: int, count: int) -> _Tiles:
        tokens = max(tokens, count)
        cuts = [tokens * tile // count for tile in range(count + 1)]
        return cls(tokens, tuple(pairwise(cuts)))

    @property
    def sizes(self) -> list[int]:
        return [stop - start for start, stop in self.bounds]

    def pad(self, states: Tensor, dim: int) -> Tensor:
        """`states` with its last token repeated, where a row has fewer tokens than there are tiles."""
        missing = self.tokens - states.shape[dim]
        if not missing:
            return states
        last = states.narrow(dim, states.shape[dim] - 1, 1)
        return torch.cat([states, *[last] * missing], dim)


def tiled_layer(layer: partial[Tensor], hidden: Tensor, *, size: int, recomputing: Recomputing) -> Tensor:
    """What `layer(hidden)` returns, within the checkpoint that recomputes it.

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
    cut = partial(_cut_keywords, layer.keywords, tokens, tiles)
    runs = [partial(layer, **cut(start, stop)) for start, stop in tiles.bounds]
    hiddens = tiles.pad(hidden, 1).split(tiles.sizes, dim=1)
    (query, key, value), attend = _project(runs, hiddens, layout)
    output = layout.exchange(query[:, :, :tokens], key[:, :, :tokens], value[:, :, :tokens], attend)
    del query, key, value
    outputs = tiles.pad(output, 2).split(tiles.sizes, dim=2)
    del output
    # The recomputation only has to bring back what each tile's checkpoint starts from.
    finish = _skip if recomputing.active else _finish
    finished = [
        checkpoint(partial(finish, run, layout), own, attended, use_reentrant=False)
        for run, own, attended in zip(runs, hiddens, outputs, strict=True)
    ]
    return torch.cat(finished, dim=1)[:, :tokens]


def _cut_keywords(
    keywords: dict[str, Any], tokens: int, tiles: _Tiles, start: int, stop: int
) -> dict[str, Any]:
    """The keywords for one tile: of tensors `[·, T, …]`, such as position embeddings, its part."""

    def cut(value: Tensor) -> Tensor:
        if value.dim() < 2 or value.shape[1] != tokens:
            return value
        return tiles.pad(value, 1)[:, start:stop]

    return {name: tree_map_only(Tensor, cut, value) for name, value in keywords.items()}


def _project(
    runs: list[partial[Tensor]], hiddens: tuple[Tensor, ...], layout: PreparedLayout
) -> tuple[list[Tensor], Attend]:
    """Queries, keys and values `[1, h, T, D]` of all tokens, and how the layer wants them attended."""
    attends: list[Attend] = []

    def project(run: partial[Tensor], hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        try:
            run(hidden, layout=replace(layout, exchange=_hand_out))
        except _AttentionReached as reached:
            attends.append(reached.attend)
            return reached.states
        raise UserError(
            f"{type(run.args[0]).__name__} does without attention, which memory.mlp_chunk cannot tile: "
            "set memory.mlp_chunk=null."
        )

    parts = [
        checkpoint(partial(project, run), hidden, use_reentrant=False)
        for run, hidden in zip(runs, hiddens, strict=True)
    ]
    lists = [list(states) for states in zip(*parts, strict=True)]
    del parts
    joined = []
    for states in lists:
        joined.append(torch.cat(states, dim=2))
        states.clear()
    return joined, attends[0]


def _finish(run: partial[Tensor], layout: PreparedLayout, hidden: Tensor, attended: Tensor) -> Tensor:
    """The layer's output for one tile, whose attention is there already."""
    return run(hidden, layout=replace(layout, exchange=lambda query, key, value, attend: attended))


def _skip(run: partial[Tensor], layout: PreparedLayout, hidden: Tensor, attended: Tensor) -> Tensor:
    """In place of `_finish` where nobody reads the output."""
    return hidden
