"""Shared-prefix attention behind transformers' AttentionInterface, under a name of its own.

A prompt's queries attend causally to the prompt. Answer i's queries attend to the whole prompt and causally
to answer i, which is a bottom-right-aligned causal mask over `prompt + answer i`. Nothing else is computed,
so siblings and other groups of the row cannot be seen.

The batch's layout reaches the function as the forward keyword `layout`; the mask interface under the same
name returns None, so that no library mask is built and a jump in `position_ids` (synthesised positions) is
not taken for a document boundary.

One process and sequence parallelism share `attend`: it takes any ascending subset of the row's queries, cut
into pieces that each lie within one prompt or answer. One process owns every piece whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from align.errors import UserError
from align.longseq.shared_prefix import Group, Layout, Span

ATTENTION = "align_sdpa"

# Keywords that models hand to every attention function and that change nothing here.
_HARMLESS = {
    "position_ids",
    "position_embeddings",
    "output_attentions",
    "use_cache",
    "is_causal",
    "cache_position",
}

# `(query [1, h, Q, D], key [1, k, T, D], value [1, k, T, D]) -> [1, h, Q, D]`, h a multiple of k.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# Brings the keys and values that some queries need to them: `(query, key, value, attend) -> output`, all of
# this process's own tokens; see exchange.py.
Exchange = Callable[[Tensor, Tensor, Tensor, Attend], Tensor]


def local(query: Tensor, key: Tensor, value: Tensor, attend: Attend) -> Tensor:
    """The exchange of one process: everything is here already."""
    return attend(query, key, value)


@dataclass(frozen=True)
class Piece:
    """Consecutive queries within one prompt or answer.

    Attributes:
        queries: their span in the tensor of queries that are attended from here.
        keys: how many of the branch's keys the last of them sees; each query before sees one fewer.
        mask: `[queries, keys]`, bottom-right-aligned causal (`is_causal=True` with fewer queries than keys
            would align it to the upper left); None where the queries are as many as the keys, or only one.
    """

    queries: Span
    keys: int
    mask: Tensor | None


@dataclass(frozen=True)
class Branch:
    """A prompt, or a prompt with one of its answers: spans of the row's keys and the pieces that attend them."""

    keys: tuple[Span, ...]
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class PreparedLayout:
    """What attention needs to know of the row: made once a forward, used by every layer.

    Attributes:
        branches: of the queries that are attended from here, in their order.
        longest_sequence: the most tokens that one answer sees, in the whole row.
        exchange: how keys and values come here; `local` for one process.
        most_tokens: that any process reads in this forward, where all have to call its modules equally often;
            None is this one's own.
    """

    branches: tuple[Branch, ...]
    longest_sequence: int
    exchange: Exchange = local
    most_tokens: int | None = None


def prepare(
    layout: Layout,
    device: torch.device,
    *,
    queries: tuple[Span, ...] | None = None,
    exchange: Exchange = local,
) -> PreparedLayout:
    """The layout as the attention function takes it; masks cannot be made inside a checkpointed layer.

    Args:
        layout: of the whole row.
        device: where the masks go.
        queries: ascending, disjoint spans of the row whose queries are attended from here; None is all.
        exchange: how keys and values come here.
    """
    make = cache(_causal_mask if device.type == "cpu" else causal_lower_right)
    own = ((0, layout.length),) if queries is None else queries
    branches = []
    for keys, span in _spans(layout.groups):
        before = sum(stop - start for start, stop in keys) - (span[1] - span[0])
        pieces = tuple(
            Piece(place, before + stop - span[0], _mask(make, stop - start, before + stop - span[0]))
            for (start, stop), place in _intersect(span, own)
        )
        if pieces:
            branches.append(Branch(keys, pieces))
    return PreparedLayout(tuple(branches), layout.longest_sequence, exchange)


def _spans(groups: tuple[Group, ...]) -> Iterator[tuple[tuple[Span, ...], Span]]:
    """Of each prompt and each answer, in row order: the keys that its last query sees, and its own span."""
    for group in groups:
        yield (group.prompt,), group.prompt
        for answer in group.answers:
            # The first answer follows its prompt: one span, which needs no copy.
            adjacent = answer[0] == group.prompt[1]
            yield ((group.prompt[0], answer[1]),) if adjacent else (group.prompt, answer), answer


def _intersect(span: Span, own: tuple[Span, ...]) -> Iterator[tuple[Span, Span]]:
    """The parts of `own` inside `span`, each with its place among the own queries."""
    offset = 0
    for start, stop in own:
        low, high = max(start, span[0]), min(stop, span[1])
        if low < high:
            yield (low, high), (offset + low - start, offset + high - start)
        offset += stop - start


def _mask(make: Callable[[int, int], Any], queries: int, keys: int) -> Tensor | None:
    return None if queries in (1, keys) else make(queries, keys)


def _causal_mask(queries: int, keys: int) -> Tensor:
    """What `causal_lower_right` stands for, as a bool tensor: the CPU kernel would rebuild it at every call."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    branches: tuple[Branch, ...],
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention of some of a row's queries to all of its keys.

    Args:
        query: `[1, h, Q, D]`, the queries that `branches` names, in row order.
        key: `[1, k, T, D]`, h a multiple of k.
        value: `[1, k, T, D]`.
        branches: which queries attend which keys.
        scaling: factor on the scores; None is `D ** -0.5`.
        dropout: probability of dropping a weight.

    Returns:
        `[1, h, Q, D]`.
    """
    outputs = []
    for branch in branches:
        branch_key, branch_value = _take(key, branch.keys), _take(value, branch.keys)
        for piece in branch.pieces:
            start, stop = piece.queries
            outputs.append(
                scaled_dot_product_attention(
                    query[:, :, start:stop],
                    branch_key[:, :, : piece.keys],
                    branch_value[:, :, : piece.keys],
                    attn_mask=piece.mask,
                    is_causal=stop - start == piece.keys,
                    scale=scaling,
                    dropout_p=dropout,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
    if not outputs:
        # Keys and values stay in the graph: the other processes wait for this one's part of their gradient.
        return query[:, :, :0] + key[:, :, :0].sum() + value[:, :, :0].sum()
    return torch.cat(outputs, dim=2)


def _take(states: Tensor, spans: tuple[Span, ...]) -> Tensor:
    """`[1, k, n, D]` of `[1, k, T, D]`: a view for one span, a copy for two."""
    parts = [states[:, :, start:stop] for start, stop in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: PreparedLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over one row of shared prompts, or over this process's shard of it (T tokens here).

    Args:
        module: the attention layer, unused.
        query: `[1, H, T, D]`.
        key: `[1, H_kv, T, D]`, H a multiple of H_kv.
        value: `[1, H_kv, T, D]`.
        attention_mask: always None; the layout takes its place.
        layout: who sees whom, from `prepare`, required.
        scaling: factor on the scores; None is `D ** -0.5`.
        dropout: probability of dropping a weight.
        sliding_window: accepted where it covers the longest prompt + answer, which makes it void.

    Returns:
        `[1, T, H, D]` and None (no weights).

    Raises:
        UserError: the model asks for attention that this function does not compute.
    """
    if layout is None:
        raise ValueError(
            f"attention '{ATTENTION}' needs the keyword `layout`: call the model through pair_logps"
        )
    _refuse_unsupported(layout, sliding_window, kwargs)
    here = partial(attend, branches=layout.branches, scaling=scaling, dropout=dropout)
    return layout.exchange(query, key, value, here).transpose(1, 2), None


def _refuse_unsupported(layout: PreparedLayout, sliding_window: int | None, extras: dict[str, Any]) -> None:
    """Refuses by name what would otherwise be silently ignored."""
    if sliding_window is not None and sliding_window < layout.longest_sequence:
        raise UserError(
            f"The model's sliding window of {sliding_window} tokens is shorter than a prompt with its answer "
            f"({layout.longest_sequence} tokens): set data.max_length={sliding_window} or use a model without it."
        )
    for name, value in extras.items():
        if value is not None and value is not False and name not in _HARMLESS:
            raise UserError(
                f"The model's attention asks for `{name}`, which the shared-prefix forward does not support."
            )


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask interface's entry: the layout takes the mask's place."""
    return


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
