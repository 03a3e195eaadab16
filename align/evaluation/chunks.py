"""A text scored chunk by chunk, with a memory of what was read and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from align.evaluation.remembered import WITH, WITHOUT, token_mean
from align.generation.memories import Memory, chunks_of
from align.generation.temp_lora import chunk_logps


@torch.no_grad()
def score_chunks(model: Any, ids: Tensor, memory: Memory, *, seed: int) -> dict[str, Any]:
    """Mean negative log-prob of a text's tokens in windows that end with a chunk; the memory reads each behind it.

    A chunk is scored before it is read, so that nothing of it is known beforehand.

    Args:
        model: a causal language model in eval mode; afterwards as it was.
        ids: `[n]`, n ≥ 2.
        memory: one that keeps something.
        seed: of what it draws.

    Returns:
        `nll_chunks` (without), `nll_memory` (with it), both over all tokens, and `chunks`: each one's first position,
        tokens that are scored, and the same two.
    """
    found: list[dict[str, Any]] = []
    plan = chunks_of(len(ids), chunk=memory.chunk, context=memory.context)
    with memory.keep(model, seed=seed) as kept:
        for start, middle, end in plan:
            scored = max(middle, 1)  # the first token of a text follows nothing
            if scored == end:
                continue
            window = ids[start:end]
            with kept.without():
                without = -chunk_logps(model, window, scored - start)
            given = -chunk_logps(model, window, scored - start)
            means = {WITHOUT: float(without.mean()), WITH: float(given.mean())}
            found.append({"first": middle, "tokens": end - scored, **means})
            if end < len(ids):
                low = max(0, middle - memory.train_context)
                kept.read(ids[low:end], max(scored - low, 1))
    tokens = [chunk["tokens"] for chunk in found]
    return {
        **{name: token_mean([chunk[name] for chunk in found], tokens) for name in (WITHOUT, WITH)},
        "chunks": found,
    }
