"""A decoder layer over tiles of tokens: all of it that works token by token, which is all but its token mixers.

The layer's own forward runs for each tile as far as its attention, which hands out the tile's queries, keys and
values; attention runs once, over all tokens; then the forward runs again for each tile, with the tile's part of
the attention's output in place of attention. Each run is checkpointed: of norms, projections and MLP nothing
longer than a tile exists, forward or backward (the idea of ALST's tiled MLP, arXiv:2506.13996, section 3.1.1,
widened to the whole layer). It costs the query, key and value projections twice.

A mixer that keeps a state is such a station too, which hands out its input. A layer may have none, or several, as
Falcon-H1's, whose Mamba mixer and attention stand side by side: its forward runs once more for each.

Autograd adds up a weight's gradient over the tiles before it reaches the weight, so that wrappers that act when
a gradient is there (DDP, FSDP, ZeRO) see it once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from align.core.errors import UserError
from align.longseq.attention import Attend, PreparedLayout
from align.longseq.token_tiles import Tiles, has_tokens, of_tile


@dataclass(frozen=True)
class _Station:
    """Where tiles meet: attention, or a mixer that keeps a state.

    Attributes:
        dim: along which tokens lie in what goes in and comes out.
        over: all tokens' states to what comes out of them.
    """

    dim: int
    over: Callable[..., Any]


class _StationReached(Exception):  # noqa: N818 - no error: it ends a forward early
    """Ends a layer's forward at a station, and carries what goes into it: queries, keys, values, or hidden states."""

    def __init__(self, states: tuple[Tensor, ...], station: _Station) -> None:
        super().__init__()
        self.states, self.station = states, station


class _Given:
    """Stands in the place of a layer's stations in the forward over one tile.

    It gives what came out of those that have been gone through, in their order, and ends the forward at the next. In
    the first forward over a tile of 512 tokens it raises `_StationReached` with their queries `[1, H, 512, D]`, their
    keys and their values, and nothing behind attention is computed.

    Args:
        outputs: of the stations gone through, this tile's part of each: `[1, H, 512, D]` or `[1, 512, H]`.
        layout: of the row.
    """

    def __init__(self, outputs: list[Any], layout: PreparedLayout) -> None:
        self.waiting, self.layout = outputs, layout

    def exchange(self, query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
        """In the place of attention's exchange."""
        if self.waiting:
            attended: Tensor = self.waiting.pop(0)
            return attended

        def over(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return self.layout.exchange(query, key, value, attend)

        raise _StationReached((query, key, value), _Station(2, over))

    def mix(self, mixer: nn.Module, run: Any, hidden: Tensor, keywords: dict[str, Any]) -> Any:
        """In the place of a mixer's runs over prompt and answers."""
        if self.waiting:
            return self.waiting.pop(0)
        leaves, form = tree_flatten(keywords)
        with_tokens = [at for at, leaf in enumerate(leaves) if has_tokens(leaf, hidden.shape[1])]

        def over(hidden: Tensor, *joined: Tensor) -> Any:
            for at, leaf in zip(with_tokens, joined, strict=True):
                leaves[at] = leaf
            # The module itself is called, so that wrappers that gather its weights do so.
            return mixer(hidden, **tree_unflatten(leaves, form), layout=self.layout)

        raise _StationReached((hidden, *(leaves[at] for at in with_tokens)), _Station(1, over))


class Recomputing:
    """A context that tells whether it is entered: `active` is True while a checkpointed layer is recomputed.

    `stations` is how many the layer was found to have when it first ran.
    """

    def __init__(self, inner: AbstractContextManager[Any]) -> None:
        self.inner, self.active, self.stations = inner, False, 0

    def __enter__(self) -> None:
        self.active = True
        self.inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.active = False
        self.inner.__exit__(*error)


def tiled_layer(
    layer: partial[Tensor], hidden: Tensor, *others: Any, size: int, recomputing: Recomputing
) -> Any:
    """What `layer(hidden, *others)` returns, a tile at a time; runs within the checkpoint that recomputes the layer.

    2,000 tokens with a `size` of 512 are 4 tiles of 500: the layer runs on each as far as attention, attention runs
    once over all 2,000, and the layer runs on each tile again with its 500 rows of attention's output given.

    Args:
        layer: the decoder layer's forward with its keywords, `layout` among them.
        hidden: `[1, T, H]`.
        others: what else the layer takes by position, such as Gemma-4's second embedding of each token `[1, T, E]`.
        size: tokens of a tile.
        recomputing: entered while the checkpoint recomputes the layer.

    Raises:
        UserError: tokens do not lie along the second dimension, as in Gemma-3n, whose layers take several copies, or
            there is no layout.
    """
    layout = _layout_of(layer)
    if hidden.shape[0] != 1:
        raise UserError(
            f"{type(layer.args[0]).__name__} takes hidden states in {hidden.shape[0]} copies, which memory.mlp_chunk "
            "cannot tile: set memory.mlp_chunk=null."
        )
    tokens = hidden.shape[1]
    count = math.ceil((layout.most_tokens or tokens) / size)
    if count <= 1:
        return layer(hidden, *others)
    tiles = Tiles.of(tokens, count)
    runs = [
        _TileRun(
            partial(layer, **of_tile(layer.keywords, tokens, tiles, *bounds)),
            layout,
            of_tile(layout.positions, tokens, tiles, *bounds),
        )
        for bounds in tiles.bounds
    ]
    beside = [of_tile(others, tokens, tiles, *bounds) for bounds in tiles.bounds]
    hiddens = tiles.cut(hidden, 1)
    outputs: list[tuple[Any, ...]] = []
    while True:
        # The last step's output is read in the forward alone: the recomputation brings back what it starts from.
        last = recomputing.active and len(runs[0].forms) == recomputing.stations
        made = [
            checkpoint(_skip if last else run, own, more, *given, use_reentrant=False)
            for run, own, more, *given in zip(runs, hiddens, beside, *outputs, strict=True)
        ]
        station = None if last else runs[0].station
        if station is None:
            recomputing.stations = len(runs[0].forms)
            return _joined_outputs(layer, made, tokens)
        states = [_joined(parts, station.dim, tokens) for parts in _transposed(made)]
        output, form = tree_flatten(station.over(*states))
        del states
        for run in runs:
            run.forms.append(form)
        outputs += [_cut_output(part, tiles, station.dim) for part in output]
        del output


def _layout_of(layer: partial[Tensor]) -> PreparedLayout:
    """The row's, which Mamba's model does not hand to its layers: in them there is nothing to tile but the mixer."""
    found: PreparedLayout | None = layer.keywords.get("layout")
    if found is None:
        raise UserError(
            f"{type(layer.args[0]).__name__} is not handed the row's layout by its model, by which memory.mlp_chunk "
            "cuts it: set memory.mlp_chunk=null."
        )
    return found


class _TileRun:
    """The layer's forward over one tile, as far as the first station whose output is not given.

    Args:
        layer: with the tile's keywords.
        layout: of the row.
        positions: `[1, tile]` of its tokens; None where the layout has none.
    """

    def __init__(self, layer: partial[Tensor], layout: PreparedLayout, positions: Tensor | None) -> None:
        self.layer, self.layout, self.positions = layer, layout, positions
        self.forms: list[TreeSpec] = []
        self.station: _Station | None = None

    def __call__(self, hidden: Tensor, others: tuple[Any, ...], *outputs: Any) -> Any:
        """The layer's output for the tile `[1, tile, H]`, or what goes into the station, which `station` then is.

        Args:
            hidden: `[1, tile, H]`.
            others: what else the layer takes by position.
            outputs: of the stations gone through, flat: a mixer may return several, some of them None.
        """
        given = _Given(self._formed(list(outputs)), self.layout)
        layout = replace(self.layout, exchange=given.exchange, mix=given.mix, positions=self.positions)
        self.station = None
        try:
            return self.layer(hidden, *others, layout=layout)
        except _StationReached as reached:
            self.station = reached.station
            return reached.states

    def _formed(self, flat: list[Any]) -> list[Any]:
        """What each station returned, of its parts; a later station's form is not needed by an earlier run."""
        formed = []
        for form in self.forms:
            parts, flat = flat[: form.num_leaves], flat[form.num_leaves :]
            if len(parts) == form.num_leaves:
                formed.append(tree_unflatten(parts, form))
        return formed


def _skip(hidden: Tensor, *unread: Any) -> Tensor:
    """In the place of a tile's last run while the layer is recomputed, where nobody reads the output."""
    return hidden


def _transposed(made: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
    """Of each state the tiles, in place of each tile's states; the list is emptied, so that no other copy stays."""
    states = [list(parts) for parts in zip(*made, strict=True)]
    made.clear()
    return states


def _joined(tiles: list[Tensor], dim: int, tokens: int) -> Tensor:
    """The tiles one after the other, without repeated tokens.

    The list is emptied, so that no second copy of them stays.
    """
    joined = torch.cat(tiles, dim=dim)
    tiles.clear()
    # Of a part the backward pass makes a copy as long as the row.
    return joined if joined.shape[dim] == tokens else joined.narrow(dim, 0, tokens)


def _joined_outputs(layer: partial[Tensor], made: list[Any], tokens: int) -> Any:
    """The layer's output of its outputs for each tile; some layers return tuples, of which parts may be None."""
    if isinstance(made[0], Tensor):
        return _joined(made, 1, tokens)
    return tuple(_joined_part(layer, list(parts), tokens) for parts in zip(*made, strict=True))


def _joined_part(layer: partial[Tensor], parts: list[Any], tokens: int) -> Tensor | None:
    if all(part is None for part in parts):
        return None
    shapes = {
        part.shape[:1] + part.shape[2:] for part in parts if isinstance(part, Tensor) and part.dim() > 1
    }
    if len(shapes) != 1 or sum(part.shape[1] for part in parts) < tokens:
        raise UserError(
            f"{type(layer.args[0]).__name__} returns more than hidden states, which memory.mlp_chunk cannot tile: "
            "set memory.mlp_chunk=null."
        )
    return _joined(parts, 1, tokens)


def _cut_output(part: Any, tiles: Tiles, dim: int) -> tuple[Any, ...]:
    """A tensor of what came out of a station, cut in tiles; what a mixer leaves empty is None in each."""
    return (None,) * len(tiles.bounds) if part is None else tiles.cut(part, dim)
