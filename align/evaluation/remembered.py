"""What a memory has changed: means of texts that were scored chunk by chunk, with it and without."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from align.evaluation.intervals import Measure, Score, mean_interval
from align.evaluation.suite import plain

WITHOUT, WITH = "nll_chunks", "nll_memory"  # nats a token, in the same windows
CHANGE = "nll_memory_change"  # of a text, with less without
_NLL = Measure(mean_interval, "lower")


def scores_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    """The mean over texts without and with the memory, and of each text's difference, whose interval is paired."""
    found = {name: _NLL.of([record[name] for record in records]) for name in (WITHOUT, WITH)}
    return {**found, CHANGE: _NLL.of([record[WITH] - record[WITHOUT] for record in records])}


def details_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Perplexity over all tokens, and the means over texts of each chunk, by its first position."""
    chunks = [chunk for record in records for chunk in record["chunks"]]
    tokens = [chunk["tokens"] for chunk in chunks]
    places = sorted({chunk["first"] for chunk in chunks})
    perplexity, by_chunk = {}, {}
    for name in (WITHOUT, WITH):
        nll = token_mean([chunk[name] for chunk in chunks], tokens)
        perplexity[name] = math.exp(nll) if nll < math.log(1e300) else math.inf
        by_chunk[name] = plain(
            {
                str(place): _NLL.of([chunk[name] for chunk in chunks if chunk["first"] == place])
                for place in places
            }
        )
    return {"perplexity_of_tokens": perplexity, "nll_by_chunk": by_chunk}


def token_mean(losses: Sequence[float], tokens: Sequence[int]) -> float:
    """The mean over tokens of means over parts: 2, 3 and 2.5 on 1,024, 1,024 and 512 tokens are 2.5.

    Its exponential is the perplexity, here 12.18; the mean of the parts' exponentials, 13.43, which Temp-LoRA's
    released code prints, is none.
    """
    return math.fsum(loss * count for loss, count in zip(losses, tokens, strict=True)) / sum(tokens)
