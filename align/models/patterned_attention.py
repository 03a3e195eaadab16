"""Chosen attention patterns outside the shared-prefix forward: when a model answers, and as what that is held against.

Padded rows with a cache of keys and values, as transformers generates: the same patterns by a mask of queries times
keys, of those keys alone that some query of a block sees. All keys are kept, also those that nobody will see again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from align.core.errors import UserError
from align.models.distance_limit import limited
from align.models.scaled_attention import scaled_query
from align.models.text_part import text_config
from align.patterns.by_head import ByHead
from align.patterns.layers import limit_of, patterns_of
from align.patterns.pattern import Pattern, Span

PATTERNED = "align_patterned"
QUERIES = 512  # of a row that attend at once; bounds masks and scores in memory


def patterned(config: PreTrainedConfig) -> str | None:
    """The name of this attention, for a model with chosen patterns; None for one that is as its architecture says."""
    return None if patterns_of(text_config(config)) is None else PATTERNED


def patterned_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of the last q tokens of each row to all of its L tokens, by the layer's patterns.

    Args:
        module: the attention layer.
        query: `[n, H, q, D]`.
        key: `[n, K, L, D]`, H a multiple of K.
        value: `[n, K, L, E]`.
        attention_mask: None, causal, or `[n, 1, q, L]`, true where attention is; a row's padding is never seen.
        scaling: factor on the scores; None is `D ** -0.5`.
        dropout: probability of dropping a weight.

    Returns:
        `[n, q, H, E]` and None (no weights).

    Raises:
        UserError: a layer that asks for soft-capped scores or sinks of its own.
    """
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise UserError(f"{type(module).__name__} asks for `{name}`, which attention=own alone computes.")
    query = scaled_query(module, query, kwargs.get("position_ids"))
    spans = pattern_spans(module, query.shape[1])
    places, allowed = _places(attention_mask, query, key)
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    limit, rows = limit_of(module.config), []
    for start in range(0, query.shape[2], QUERIES):
        some = query[:, :, start : start + QUERIES]
        own = places[:, -query.shape[2] :][:, start : start + QUERIES]
        visible = allowed[:, :, start : start + QUERIES] | _itself(some, key, start, query.shape[2])
        seen = seen_keys(spans, own, places) & visible
        if limit is None:
            rows.append(_masked(some, *kept_keys(key, value, seen), dropout, factor))
            continue
        window: Any = spans[0][1]
        near = seen & (own[:, None, :, None] - places[:, None, None] < window.size)
        masks: Any = {"near": near, "far": seen & ~near, "places": (own, places)}
        rows.append(limited(module, some, key, value, **masks, limit=limit, scaling=factor))
    return torch.cat(rows, dim=2).transpose(1, 2).contiguous(), None


def _masked(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, dropout: float, scaling: float
) -> Tensor:
    """`[n, H, q, E]` by a mask `[n or 1, 1 or H, q, L]`."""
    shared = query.shape[1] // key.shape[1]
    key, value = (one.repeat_interleave(shared, dim=1) for one in (key, value))
    return scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling)


def pattern_spans(module: nn.Module, heads: int) -> tuple[tuple[Span, Pattern], ...]:
    """The pattern of each run of a layer's query heads, of a model with chosen patterns."""
    config: Any = module.config
    patterns: Any = patterns_of(config)
    pattern = patterns.at(module.layer_idx, layers=config.num_hidden_layers, heads=heads)
    return pattern.spans if isinstance(pattern, ByHead) else (((0, heads), pattern),)


def seen_keys(spans: tuple[tuple[Span, Pattern], ...], own: Tensor, places: Tensor) -> Tensor:
    """Whether queries at the places `own` `[n, q]` see keys at `places` `[n or 1, L]`, causally.

    Returns:
        `[n, H, q, L]`, or `[n, 1, q, L]` where all heads see alike.
    """
    queries, keys = own[:, None, :, None], places[:, None, None]
    if len(spans) == 1:
        seen: Tensor = spans[0][1].sees(queries, keys)
        return seen
    found = [pattern.sees(queries, keys).expand(-1, last - first, -1, -1) for (first, last), pattern in spans]
    return torch.cat(found, dim=1)


def kept_keys(key: Tensor, value: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and what is seen of them, without the keys that no query sees: those have no weight.

    Args:
        key, value: `[n or 1, K, L, D]` and `[n or 1, K, L, E]`.
        seen: `[n or 1, 1 or H, q, L]`.
    """
    places = seen.flatten(0, 2).any(dim=0).nonzero()[:, 0]
    if len(places) == seen.shape[3]:
        return key, value, seen
    return key[:, :, places], value[:, :, places], seen[..., places]


def _places(mask: Tensor | None, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """`[n or 1, L]` logical places of the keys, and `[n or 1, 1, q, L]` what the library lets queries see.

    Of a row of 5 that is padded by 2 the places are −1, −1, 0, 1, 2: its last token sees all of its real ones.
    """
    queries, keys = query.shape[2], key.shape[2]
    if mask is None:
        whole = torch.ones(queries, keys, dtype=torch.bool, device=query.device)
        return torch.arange(keys, device=query.device)[None], whole.tril(keys - queries)[None, None]
    mask = mask[..., :keys]
    return mask[:, 0, -1].long().cumsum(-1) - 1, mask


def _itself(query: Tensor, key: Tensor, start: int, queries: int) -> Tensor:
    """`[q, L]` true where a token meets itself, which padding needs: of a softmax over nothing comes no number."""
    keys = torch.arange(key.shape[2], device=query.device)
    own = torch.arange(query.shape[2], device=query.device) + start + key.shape[2] - queries
    return own[:, None] == keys


AttentionInterface.register(PATTERNED, patterned_attention)
AttentionMaskInterface.register(PATTERNED, sdpa_mask)
