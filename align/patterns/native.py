"""The patterns that a model's architecture gives its layers, by what its configuration says."""

from __future__ import annotations

from typing import Any

from align.patterns.pattern import FULL, Chunked, Pattern, Window

FULL_TYPE, WINDOW_TYPE, CHUNKED_TYPE = "full_attention", "sliding_attention", "chunked_attention"
HYBRID_TYPE = "hybrid"  # full attention beside a layer that keeps a state


def native_patterns(config: Any) -> tuple[Pattern | None, ...]:
    """The pattern of every layer as a text model's configuration names it; None of a layer without attention.

    Of 6 layers, 5 of them with a window of 512: five times `Window(512)`, and `Full()`.
    """
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        used = window is not None and getattr(config, "use_sliding_window", True) is not False
        types = [WINDOW_TYPE if used else FULL_TYPE] * config.num_hidden_layers
    chunk = getattr(config, "attention_chunk_size", None)
    known: dict[str, Pattern] = {
        FULL_TYPE: FULL,
        WINDOW_TYPE: FULL if window is None else Window(window),
        CHUNKED_TYPE: FULL if chunk is None else Chunked(chunk),
        HYBRID_TYPE: FULL,
    }
    return tuple(known.get(kind) for kind in types)
