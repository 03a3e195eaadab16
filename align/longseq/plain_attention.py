"""Shared-prefix attention the plain way: copies and masks, by `scaled_dot_product_attention` or by its scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from align.longseq.prepared import PreparedLayout
from align.longseq.shared_prefix import Span
from align.patterns.by_head import ByHead
from align.patterns.pattern import FULL, Pattern


def attend_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: PreparedLayout,
    pattern: Pattern | ByHead = FULL,
    sinks: Tensor | None = None,
    heads: Span | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """As `attention.attend`, with copies and masks, on any device and with dropout.

    By `scaled_dot_product_attention`, or by its scores where there are sinks.

    Args:
        query: `[1, h, Q, D]`, the queries that `layout` was prepared for, in row order.
        key: `[1, k, T, D]`, h a multiple of k.
        value: `[1, k, T, E]`.
        layout: the row, and which of its queries these are.
        pattern: which of the tokens before it a token of a branch sees, in all heads or run by run.
        sinks: `[H]` of the layer's heads, a logit each that joins the softmax; None is none.
        heads: which of the layer's H query heads these are; None is all.
        scaling: factor on the scores; None is `D ** -0.5`.
        dropout: probability of dropping a weight.

    Returns:
        `[1, h, Q, E]`.
    """
    asked: Any = {"layout": layout, "scaling": scaling, "dropout": dropout}
    if not isinstance(pattern, ByHead):
        return _attend(query, key, value, pattern=pattern, own_sinks=of_heads(sinks, heads), **asked)
    first, found = heads[0] if heads else 0, []
    for run in pattern.runs(heads or (0, query.shape[1])):
        some, some_kv = slice(*run.query), slice(*run.kv)
        own_sinks = of_heads(sinks, (first + some.start, first + some.stop))
        states = query[:, some], key[:, some_kv], value[:, some_kv]
        found.append(_attend(*states, pattern=run.pattern, own_sinks=own_sinks, **asked))
    return torch.cat(found, dim=1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: PreparedLayout,
    pattern: Pattern,
    own_sinks: Tensor | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """The same of heads that have one pattern, and their own sinks."""
    outputs = []
    for branch in layout.branches:
        branch_key, branch_value = (
            torch.cat([states[:, :, start:stop] for start, stop in branch.keys], dim=2)
            for states in (key, value)
        )
        for piece in branch.pieces:
            start, stop = piece.queries
            states = query[:, :, start:stop], branch_key[:, :, : piece.keys], branch_value[:, :, : piece.keys]
            if own_sinks is not None:
                mask = _mask(pattern, stop - start, piece.keys, query.device)
                outputs.append(_with_sinks(*states, mask, own_sinks, scaling, dropout))
                continue
            # `is_causal` with fewer queries than keys would align the mask to the upper left.
            square = stop - start == piece.keys and pattern == FULL
            outputs.append(
                scaled_dot_product_attention(
                    *states,
                    attn_mask=None if square else _mask(pattern, stop - start, piece.keys, query.device),
                    is_causal=square,
                    scale=scaling,
                    dropout_p=dropout,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
    return torch.cat(outputs, dim=2) if outputs else nothing(query, key, value, own_sinks)


def _mask(pattern: Pattern, queries: int, keys: int, device: torch.device) -> Tensor:
    """`[queries, keys]`, true where the last queries of a branch see its keys: of 2 and 5, causally, 4 and 5."""
    places = torch.arange(keys, device=device)
    seen: Tensor = pattern.sees(places[keys - queries :, None], places[None])
    return seen


def _with_sinks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    sinks: Tensor,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention of `[1, h, q, D]` by its scores, which sinks `[h]` join as one more column, without a value."""
    shared = query.shape[1] // key.shape[1]
    key, value = (states.repeat_interleave(shared, dim=1) for states in (key, value))
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    precision = torch.promote_types(query.dtype, torch.float32)
    scores = (query.to(precision) @ key.to(precision).transpose(2, 3) * factor).masked_fill(~mask, -torch.inf)
    column = sinks.to(precision)[None, :, None, None].expand(*scores.shape[:3], 1)
    weights = torch.cat([scores, column], dim=3).softmax(3)[..., :-1]
    return (torch.dropout(weights, dropout, dropout > 0) @ value.to(precision)).to(query.dtype)


def of_heads(sinks: Tensor | None, heads: Span | None) -> Tensor | None:
    """The sinks of the heads `(first, last)`; all of them, or none, as they come."""
    return sinks if sinks is None or heads is None else sinks[slice(*heads)]


def nothing(query: Tensor, key: Tensor, value: Tensor, sinks: Tensor | None = None) -> Tensor:
    """`[1, h, 0, D]` of no queries, whose graph holds keys and values: others wait for their gradient."""
    held = (key[:, :, :0], value[:, :, :0], *(() if sinks is None else (sinks[:0],)))
    return query[:, :, :0] + sum(one.sum() for one in held)
