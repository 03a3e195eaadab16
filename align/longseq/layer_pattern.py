"""Which attention pattern a layer of a model has, from its configuration and what it hands to its attention."""

from __future__ import annotations

from typing import Any

from torch import nn

from align.core.errors import UserError
from align.longseq.patterns import FULL, Chunked, Pattern, Window

_FULL, _WINDOW, _CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_HYBRID = "hybrid"  # full attention beside a layer that keeps a state
# Entries of a configuration's `layer_types` whose attention is computed here.
ATTENTION_TYPES = frozenset({_FULL, _WINDOW, _CHUNKED})

# Entries of layers with a state that runs along the row (states.py); a hybrid one has attention beside it.
STATE_TYPES = frozenset({"linear_attention", "conv", _HYBRID})
# Entries of layers that attend fully to keys that an index of their own selects among those that a mask allows.
SELECTING = frozenset({"indexed_attention"})
# Entries of layers that mix no tokens.
TOKENWISE_TYPES = frozenset({"mlp", "moe"})


class Unsaid:
    """What a layer has said of a window that never mentions one."""


UNSAID = Unsaid()


def layer_pattern(module: nn.Module, sliding_window: int | Unsaid | None, longest: int) -> Pattern:
    """The pattern of one layer; `FULL` where its window holds every branch of the row, which makes it void.

    `layer_types` of the configuration decides where it names the layer, as it does for the library's own masks; else
    the window is what the layer hands to its attention, or, where it hands over none at all, the configuration's.

    Args:
        module: the attention layer.
        sliding_window: tokens, as the layer hands it to its attention, itself included; None is no window, `UNSAID`
            where the layer does not speak of one.
        longest: the most tokens that one answer sees, in the whole row.

    Raises:
        UserError: a type of attention that is not known here.
    """
    config = getattr(module, "config", None)
    kind = _type_of(module, config)
    if isinstance(sliding_window, Unsaid):
        sliding_window = getattr(config, "sliding_window", None)
    if kind is None:
        kind = _FULL if sliding_window is None else _WINDOW
    if kind not in {*ATTENTION_TYPES, _HYBRID}:
        raise UserError(
            f"{type(module).__name__} is attention of type {kind}, which the shared-prefix forward does not know."
        )
    if kind in (_FULL, _HYBRID):
        return FULL
    if kind == _CHUNKED:
        size = getattr(config, "attention_chunk_size", None)
        return FULL if size is None or size >= longest else Chunked(size)
    size = sliding_window if sliding_window is not None else getattr(config, "sliding_window", None)
    return FULL if size is None or size >= longest else Window(size)


def attention_patterns(config: Any) -> tuple[Pattern | None, ...]:
    """The pattern of every layer as a text model's configuration names it; None of a layer without attention.

    Of 6 layers, 5 of them with a window of 512: five times `Window(512)`, and `Full()`.
    """
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        used = window is not None and getattr(config, "use_sliding_window", True) is not False
        types = [_WINDOW if used else _FULL] * config.num_hidden_layers
    chunk = getattr(config, "attention_chunk_size", None)
    known: dict[str, Pattern] = {
        _FULL: FULL,
        _WINDOW: FULL if window is None else Window(window),
        _CHUNKED: FULL if chunk is None else Chunked(chunk),
        _HYBRID: FULL,
    }
    return tuple(known.get(kind) for kind in types)


def _type_of(module: nn.Module, config: Any) -> str | None:
    """The layer's entry in `layer_types`; None where the configuration has none, or the layer no number."""
    types, number = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    if types is None or number is None or number >= len(types):
        return None
    return str(types[number])
