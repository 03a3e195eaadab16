"""Attention of rows that go on from common prefixes: a prefix's keys and values are there once for all its rows.

Queries of all rows of a prefix attend to it in one kernel call, and each to what follows in its own row; the two
are merged by their log-sum-exps (as in longseq/merge.py). So a batch keeps a prefix once, and a step of decoding
reads it once, in the place of once a row.

The forward knows nothing of it: a cache that counts the prefixes but holds only what follows them, and an attention
function of transformers' AttentionInterface, which finds the prefixes of the running batch in a context variable.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from align.core.errors import UserError
from align.longseq.attention import HARMLESS
from align.longseq.kernels import kernel_named, sdpa_kernel
from align.longseq.support import check_every_layer_called
from align.models.patterned_attention import kept_keys, pattern_spans, seen_keys
from align.models.scaled_attention import scaled_query
from align.models.structure import attention_of
from align.patterns.layers import patterns_of
from align.patterns.pattern import Pattern, Span

ATTENTION = "align_prefix"
QUERIES = 512  # of a row that attend to their own row at once; bounds the scores in memory

KeysValues = list[tuple[Tensor, Tensor]]  # a layer each, `[1, K, tokens, D]`


@dataclass(frozen=True)
class Prefix:
    """Keys and values of a prefix, and the rows of the batch that go on from it."""

    rows: slice
    layers: KeysValues

    @property
    def tokens(self) -> int:
        """How many it has."""
        return self.layers[0][0].shape[2]


class _AfterPrefix(DynamicLayer):
    """A layer's cache of what follows the prefixes, `[n, K, L, D]`, whose length counts the longest prefix too.

    Behind prefixes of 500 and 400 tokens it says 507 when 7 tokens of each row have been read.
    """

    def __init__(self, prefix_tokens: int) -> None:
        super().__init__()
        self.prefix_tokens = prefix_tokens

    def get_seq_length(self) -> int:
        return self.prefix_tokens + super().get_seq_length()


class PrefixedBatch:
    """A batch whose rows go on from prefixes.

    Args:
        prefixes: each row has one, of 500 tokens the rows 0 … 3 and of 400 the rows 4 and 5, say; rows are padded on
            the left to the longest.
    """

    def __init__(self, prefixes: Sequence[Prefix]) -> None:
        self.prefixes = prefixes
        self.callers: set[nn.Module] = set()

    def cache(self) -> Cache:
        """For the model, beside `attended_by`."""
        longest = max(prefix.tokens for prefix in self.prefixes)
        return Cache(layers=[_AfterPrefix(longest) for _ in self.prefixes[0].layers])

    @contextmanager
    def attended_by(self, model: PreTrainedModel) -> Iterator[None]:
        """Within it, the model's attention sees the prefixes.

        Raises:
            UserError: at the end, if a layer attended by code of its own.
        """
        token = _CURRENT.set(self)
        try:
            with attention_of(model, ATTENTION):
                yield
        finally:
            _CURRENT.reset(token)
        check_every_layer_called(model, self.callers)


_CURRENT: ContextVar[PrefixedBatch] = ContextVar("prefixed_batch")


def prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    s_aux: Tensor | None = None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over prefixes and what follows them; q queries a row, L tokens of it behind the prefix.

    Args:
        module: the attention layer; its `layer_idx` finds the prefixes' keys and values.
        query: `[n, H, q, D]`.
        key: `[n, K, L, D]`, H a multiple of K.
        value: `[n, K, L, E]`.
        attention_mask: None or `[n, 1, q, ≥ L]`, true where attention is; the last L columns are used.
        scaling: factor on the scores; None is `D ** -0.5`.
        s_aux: `[H]` sinks: a logit for each head that joins the softmax and has no value.
        position_ids: `[n or 1, q]`, for models that scale queries by them.

    Returns:
        `[n, q, H, E]` and None (no weights).

    Raises:
        UserError: the layer asks for what is not computed here, such as soft-capped scores.
    """
    for name, asked in kwargs.items():
        given = asked is not None and (isinstance(asked, Tensor) or asked != 0)
        if given and name not in HARMLESS:
            raise UserError(
                f"{type(module).__name__} asks for `{name}`, which common prefixes are not read with."
            )
    current = _CURRENT.get()
    current.callers.add(module)
    query = scaled_query(module, query, position_ids)
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    mask = _own_mask(attention_mask, query, key)
    places = spans = None
    if patterns_of(getattr(module, "config", None)) is not None:
        places, spans = _places(mask, current.prefixes, len(query)), pattern_spans(module, query.shape[1])
        mask = mask & seen_keys(spans, places[:, -query.shape[2] :], places)
    output, lse = _attend_own(query, key, value, mask, factor)
    for prefix in current.prefixes:
        keys, values = prefix.layers[module.layer_idx]  # type: ignore[index]
        seen = None
        if places is not None and spans is not None:
            own = places[prefix.rows, -query.shape[2] :]
            keys, values, seen = _seen_prefix(spans, own, keys, values)
        if not keys.shape[2]:
            continue  # all of the prefix is hidden
        of_prefix, prefix_lse = _attend_prefix(query[prefix.rows], keys, values, seen, factor)
        _merge(output[prefix.rows], lse[prefix.rows], of_prefix, prefix_lse)
    if s_aux is not None:
        output.mul_(torch.sigmoid(lse - s_aux.to(lse.dtype)[None, :, None])[..., None])
    return output.to(query.dtype).transpose(1, 2).contiguous(), None


def _merge(output: Tensor, lse: Tensor, of_prefix: Tensor, prefix_lse: Tensor) -> None:
    """Adds a prefix's keys to the softmax of rows, in place: `[m, H, q, E]` and `[m, H, q]` each."""
    weight = torch.sigmoid(prefix_lse - lse)[..., None]
    output.copy_(torch.lerp(output, of_prefix.to(output.dtype), weight))
    lse.copy_(torch.logaddexp(lse, prefix_lse))


def _places(mask: Tensor, prefixes: Sequence[Prefix], rows: int) -> Tensor:
    """`[n, L]` places in their rows of what follows the prefixes; padding has that of the token before it.

    Behind a prefix of 500 tokens a row of two tokens, padded by one, has 499, 500 and 501.
    """
    before = torch.zeros(rows, dtype=torch.long, device=mask.device)
    for prefix in prefixes:
        before[prefix.rows] = prefix.tokens
    own: Tensor = mask[:, 0, -1].long().cumsum(-1) - 1
    return own + before[:, None]


def _own_mask(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """`[n or 1, 1, q, L]`, true where attention is; without a mask causal, aligned to the lower right."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        whole = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        return whole.tril(keys - queries)[None, None]
    return mask[..., -keys:]


def _attend_own(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """Output `[n, H, q, E]` and log-sum-exp `[n, H, q]`, fp32 or more; zeros and −∞ where nothing may be seen.

    `mask` is `[n or 1, 1 or H, q, L]`; keys and values may be of one row for all.
    """
    rows, heads, _, width = query.shape
    value_width = value.shape[3]
    precision = torch.promote_types(query.dtype, torch.float32)
    shared = (rows, key.shape[1], heads // key.shape[1], -1, width)
    grouped = query.to(precision).reshape(shared)
    key, value = key.to(precision)[:, :, None], value.to(precision)[:, :, None]
    outputs, sums = [], []
    by_head = mask[:, :, None] if mask.shape[1] == 1 else mask.unflatten(1, shared[1:3])
    for queries, visible in zip(grouped.split(QUERIES, 3), by_head.split(QUERIES, 3), strict=True):
        scores = (queries @ key.transpose(3, 4) * scaling).masked_fill(~visible, -torch.inf)
        lse = scores.logsumexp(4, keepdim=True)
        outputs.append((scores - lse.clamp_min(torch.finfo(precision).min)).exp() @ value)
        sums.append(lse[..., 0])
    return torch.cat(outputs, 3).reshape(rows, heads, -1, value_width), torch.cat(sums, 3).reshape(
        rows, heads, -1
    )


def _seen_prefix(
    spans: tuple[tuple[Span, Pattern], ...], own: Tensor, keys: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The keys and values of a prefix that queries at the places `own` `[m, q]` see, and which; None where all do."""
    before = torch.arange(keys.shape[2], device=keys.device)[None]
    keys, values, seen = kept_keys(keys, values, seen_keys(spans, own, before))
    return keys, values, None if seen.all() else seen


def _attend_prefix(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None, scaling: float
) -> tuple[Tensor, Tensor]:
    """`[m, H, q, D]` of m rows to `[1, K, S, D]`: output `[m, H, q, E]` and log-sum-exp `[m, H, q]`.

    `seen` is `[m, 1 or H, q, S]`, or None where every query sees all.
    """
    rows, heads, queries, width = query.shape
    together = query.transpose(0, 1).reshape(1, heads, rows * queries, width)
    name = sdpa_kernel(together, value) if seen is None else None
    if name is None:
        everything = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=query.device)
        mask = everything if seen is None else seen.transpose(0, 1).flatten(1, 2)[None]
        visible = mask.expand(1, -1, rows * queries, key.shape[2])
        output, lse = _attend_own(together, key, value, visible, scaling)
    else:
        output, lse = kernel_named(name).forward(together, key, value, (), scaling)
    return (
        output.reshape(heads, rows, queries, value.shape[3]).transpose(0, 1),
        lse.reshape(heads, rows, queries).transpose(0, 1),
    )


AttentionInterface.register(ATTENTION, prefix_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
