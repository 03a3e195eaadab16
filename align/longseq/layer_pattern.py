"""Which attention pattern a layer of a model has, from its configuration and what it hands to its attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from align.core.errors import UserError
from align.patterns.by_head import ByHead
from align.patterns.layers import patterns_of
from align.patterns.native import CHUNKED_TYPE, FULL_TYPE, HYBRID_TYPE, WINDOW_TYPE
from align.patterns.pattern import FULL, Chunked, Pattern, Window

# Entries of a configuration's `layer_types` whose attention is computed here.
ATTENTION_TYPES = frozenset({FULL_TYPE, WINDOW_TYPE, CHUNKED_TYPE})

# Entries of layers with a state that runs along the row (states.py); a hybrid one has attention beside it.
STATE_TYPES = frozenset({"linear_attention", "conv", HYBRID_TYPE})
# Entries of layers that attend fully to keys that an index of their own selects among those that a mask allows.
SELECTING = frozenset({"indexed_attention"})
# Entries of layers that mix no tokens.
TOKENWISE_TYPES = frozenset({"mlp", "moe"})


class Unsaid:
    """What a layer has said of a window that never mentions one."""


UNSAID = Unsaid()


def layer_pattern(
    module: nn.Module, sliding_window: int | Unsaid | None, longest: int, heads: int = 1, kv_heads: int = 1
) -> Pattern | ByHead:
    """The pattern of one layer: as the group `attention` has chosen, else as its architecture says.

    Args:
        module: the attention layer.
        sliding_window: tokens, as the layer hands it to its attention, itself included; None is no window, `UNSAID`
            where the layer does not speak of one.
        longest: the most tokens that one answer sees, in the whole row.
        heads: of the layer's queries.
        kv_heads: of its keys and values.

    Raises:
        UserError: a type of attention that is not known here, or a choice for a layer that does not say its number.
    """
    config: Any = getattr(module, "config", None)
    chosen = patterns_of(config)
    if chosen is None:
        return _native_pattern(module, sliding_window, longest)
    number: Any = getattr(module, "layer_idx", None)
    if number is None:
        raise UserError(
            f"{type(module).__name__} does not say which layer it is, so that no pattern can be chosen for it: set "
            "attention=own."
        )
    found = chosen.at(number, layers=config.num_hidden_layers, heads=heads)
    return replace(found, queries_per_kv=heads // kv_heads) if isinstance(found, ByHead) else found


def _native_pattern(module: nn.Module, sliding_window: int | Unsaid | None, longest: int) -> Pattern:
    """The pattern of the layer's architecture; `FULL` where its window holds every branch of the row, which voids it.

    `layer_types` of the configuration decides where it names the layer, as it does for the library's own masks; else
    the window is what the layer hands to its attention, or, where it hands over none at all, the configuration's.
    """
    config = getattr(module, "config", None)
    kind = _type_of(module, config)
    if isinstance(sliding_window, Unsaid):
        sliding_window = getattr(config, "sliding_window", None)
    if kind is None:
        kind = FULL_TYPE if sliding_window is None else WINDOW_TYPE
    if kind not in {*ATTENTION_TYPES, HYBRID_TYPE}:
        raise UserError(
            f"{type(module).__name__} is attention of type {kind}, which the shared-prefix forward does not know."
        )
    if kind in (FULL_TYPE, HYBRID_TYPE):
        return FULL
    if kind == CHUNKED_TYPE:
        size = getattr(config, "attention_chunk_size", None)
        return FULL if size is None or size >= longest else Chunked(size)
    size = sliding_window if sliding_window is not None else getattr(config, "sliding_window", None)
    return FULL if size is None or size >= longest else Window(size)


def _type_of(module: nn.Module, config: Any) -> str | None:
    """The layer's entry in `layer_types`; None where the configuration has none, or the layer no number."""
    types, number = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    if types is None or number is None or number >= len(types):
        return None
    return str(types[number])
