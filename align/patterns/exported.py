"""Chosen patterns in a checkpoint that other engines read: as windows that its architecture knows, or not at all."""

from __future__ import annotations

from typing import Any

from align.core.errors import UserError
from align.patterns.layers import KEY, attention_patterns, patterns_of
from align.patterns.native import FULL_TYPE, WINDOW_TYPE
from align.patterns.pattern import FULL, Window

# Architectures of transformers with windows in layers that `layer_types` names, and with one window for all layers.
BY_LAYER = frozenset({"qwen2", "qwen3", "smollm3"})
ALL_ALIKE = frozenset({*BY_LAYER, "mistral", "mixtral", "phi3", "phimoe", "qwen3_moe", "starcoder2"})
ACCEPTED = "layer_patterns"  # of `align export accept=[…]`


def check_exported(config: Any, accept: list[str]) -> None:
    """Refuses to export patterns that other engines would silently leave out, unless that is accepted.

    Args:
        config: of the text model.
        accept: `align export accept=[…]`.

    Raises:
        UserError: what an engine has to do, and the key that accepts it.
    """
    words = None if ACCEPTED in accept or _native_keys(config) is not None else engine_words(config)
    if words is not None:
        raise UserError(f"{words} Set accept=[{ACCEPTED}] to export it so.")


def engine_words(config: Any) -> str | None:
    """What whoever serves a model with chosen patterns has to compute, in a sentence; None of one without any."""
    text = config.get_text_config()
    if patterns_of(text) is None:
        return None
    found = ", ".join(sorted({str(pattern) for pattern in attention_patterns(text) if pattern is not None}))
    return (
        f"This model was trained with attention patterns ({found}) that {text.model_type} models do not have: an "
        f"engine that does not compute them as {KEY} in config.json says would read it with full attention."
    )


def to_native(config: Any) -> None:
    """Puts chosen windows into the keys that a text model's architecture has for them, in place, where it has some."""
    keys = _native_keys(config)
    if keys is None:
        return
    for name, value in keys.items():
        setattr(config, name, value)
    delattr(config, KEY)


def _native_keys(config: Any) -> dict[str, Any] | None:
    """The keys that say the same in the architecture's own words; None where it has none."""
    if patterns_of(config) is None:
        return None
    patterns = attention_patterns(config)
    windows = {pattern for pattern in patterns if pattern != FULL}
    if not windows:
        return {}
    window = next(iter(windows))
    if len(windows) > 1 or not isinstance(window, Window) or window.sinks:
        return None
    kind = config.model_type
    if kind in BY_LAYER:
        types = [FULL_TYPE if pattern == FULL else WINDOW_TYPE for pattern in patterns]
        return {"layer_types": types, "sliding_window": window.size, "use_sliding_window": True}
    if kind not in ALL_ALIKE or FULL in patterns:
        return None
    used = {"use_sliding_window": True} if hasattr(config, "use_sliding_window") else {}
    return {"sliding_window": window.size} | used
