"""Bytes at the head, beside what layers keep: vocabulary logits, the last norm, the gradient of the head's weights.

- **logits** of a slice of the scored tokens: 2 · slice · V numbers in fp32 (logits and their exponential), and in bf16
  the logits before; where the head trains, its gradient: one from the slices, one being added, one from the call that
  keeps the head in the graph of ranks without scored tokens.
- **the last norm** reads the scored tokens alone (align/longseq/last_norm.py), where it is the last thing that a
  decoder does; then the row has its last hidden states and their gradient, 2H. Else it runs over the whole row. Of
  what it reads it has input, output and gradient, 3H, the output once more where it trains, in bf16 the fp32 copy of
  its input, and in its backward pass `NORM_BACKWARD` bytes for each number.

Of 131,072 tokens with H = 4,096 in bf16 the norm over the row takes 13 GB, and 2H 2 GB.
"""

from __future__ import annotations

import math

from align.planning.architecture import Architecture
from align.planning.job import Precision

# Six tensors of float32 and parts, whatever the weights' type: torch's own count, and what an H100's peaks show.
NORM_BACKWARD = 24.8


def head_bytes(
    model: Architecture,
    precision: Precision,
    *,
    logits_chunk: int,
    tokens: int,
    scored: int,
    norm_of_scored: bool,
) -> float:
    """The larger of two peaks: while logits exist, and in the last norm's backward pass.

    1,500 scored tokens with `logits_chunk` 1,024 go through the head in two slices of 750.

    Args:
        model: its sizes.
        precision: under the wrapper.
        logits_chunk: of the levers.
        tokens: that are read at once.
        scored: of them those that the head scores.
        norm_of_scored: whether the norm reads these alone.
    """
    at_once = math.ceil(scored / max(1, math.ceil(scored / logits_chunk)))
    logits = at_once * model.vocabulary * (8 + (0 if precision.products == 4 else precision.products))
    gradient = model.head_parameters * precision.weights if model.head_trains else 0.0
    stream = model.hidden * precision.stream
    work = max(logits + gradient, 3 * gradient)
    whole, normed = (2 * stream * tokens, scored) if norm_of_scored else (0.0, tokens)
    trained = 0 if model.lora else stream
    norm = (3 * stream + trained + model.hidden * precision.norm_copy) * normed
    return whole + max(norm + work, NORM_BACKWARD * model.hidden * normed + gradient)
