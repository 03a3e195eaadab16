"""What rows of `align verify` are too short to show: patterns that hide nothing, query scales that change nothing."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedConfig

from align.models.query_scale import scale_of
from align.models.text_part import text_config
from align.patterns.by_head import seen_pairs
from align.patterns.layers import attention_patterns
from align.patterns.pattern import FULL


def unshown(config: PreTrainedConfig, tokens: int) -> Iterator[str]:
    """A sentence for each thing that rows of so many tokens do not show.

    "Rows of 120 tokens are seen whole through Window(size=2048, sinks=64), so that this shows nothing of it: …"

    Args:
        config: of the small copy.
        tokens: of the longest row, positions from 0 on.
    """
    text = text_config(config)
    whole = seen_pairs(FULL, (0, tokens))
    for name in dict.fromkeys(
        str(pattern)
        for pattern in attention_patterns(text)
        if pattern not in (None, FULL) and seen_pairs(pattern, (0, tokens)) == whole
    ):
        yield (
            f"Rows of {tokens} tokens are seen whole through {name}, so that they show nothing of it: set a narrower "
            "pattern here (attention.window, attention.group, attention.others.size, attention.others.block), or "
            "prompt_tokens above it."
        )
    scale, places = scale_of(config), torch.arange(tokens, dtype=torch.float64)[None]
    if scale is None:
        return
    factors = [scale.scale(places, layer) for layer in range(text.num_hidden_layers)]
    if all(factor is None or bool((factor == 1).all()) for factor in factors):
        yield (
            f"model.query_scale is 1 in the {len(factors)} layers and {tokens} positions of these rows, so that they "
            "show nothing of it: set a shorter model.query_scale.window here, and model.query_scale.skip_layers=0."
        )
