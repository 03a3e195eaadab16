"""Log-probs of a text's tokens: in one window, and in windows that slide over it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from align.longseq.logps import token_logps
from align.longseq.tail import tail_of
from align.models.loading import window_of
from align.models.structure import find_causal_lm
from align.models.text_part import text_decoder

HEAD_CHUNK = 1024  # tokens whose vocabulary logits exist at once


def learned_positions(model: Any) -> int | None:
    """Tokens that the model's table of positions holds; None where positions are computed (RoPE) or there are none."""
    window = window_of(model.config)
    if window is None:
        return None
    words = model.get_input_embeddings()
    tables = (part for part in model.get_decoder().modules() if isinstance(part, nn.Embedding))
    spare = 8  # rows that a table has before its first position (OPT: 2)
    held = any(table is not words and window <= table.num_embeddings <= window + spare for table in tables)
    return int(window) if held else None


@torch.inference_mode()
def score_document(
    model: Any, ids: Tensor, *, window: int, stride: int, edges: Sequence[int]
) -> dict[str, Any]:
    """Mean negative log-prob of a text's tokens: of all, in sliding windows, and by position.

    Args:
        model: a causal language model.
        ids: `[n]`, n ≥ 2.
        window: tokens of a sliding window, of which only what the one before has not scored counts.
        stride: tokens from one window's start to the next one's.
        edges: positions at which ranges begin, from 0 on.
    """
    nll = -sequence_logps(model, ids)
    sliding = torch.cat([-part for part in sliding_logps(model, ids, window=window, stride=stride)])
    ranges = pairwise([*edges, len(ids) + 1])
    return {
        "tokens": len(ids),
        "nll": float(nll.mean()),
        "nll_sliding": float(sliding.mean()),
        "by_position": {
            str(low): float(nll[max(low - 1, 0) : high - 1].mean())
            for low, high in ranges
            if max(low - 1, 0) < min(high - 1, len(nll))
        },
    }


def sequence_logps(model: Any, ids: Tensor) -> Tensor:
    """`[n − 1]` log-probs, fp32, of tokens 1 … n − 1 of `ids` `[n]`, each given all before it."""
    lm = find_causal_lm(model)
    hidden = text_decoder(lm)(input_ids=ids[None], use_cache=False).last_hidden_state[0, :-1]
    slices = math.ceil(len(hidden) / HEAD_CHUNK)
    return token_logps(tail_of(lm).of(lm.get_output_embeddings()), hidden, ids[1:], slices=slices)


def sliding_logps(model: Any, ids: Tensor, *, window: int, stride: int) -> Iterator[Tensor]:
    """The same tokens' log-probs, each given at least `window − stride` tokens before it (fewer at the start).

    Windows begin every `stride` tokens; of each only what the one before has not scored counts.
    """
    scored = 1
    for start in range(0, len(ids), stride):
        stop = min(start + window, len(ids))
        if stop > scored:
            logps = sequence_logps(model, ids[start:stop])
            yield logps[scored - start - 1 :]
            scored = stop
        if stop == len(ids):
            return
