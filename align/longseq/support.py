"""Which models the shared-prefix forward computes exactly; the others are refused by name."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import UserError
from align.longseq.own_logits import check_own_rows
from align.longseq.settings import cannot_share
from align.models.rope import rope_types
from align.models.settings import LIBRARY
from align.models.structure import find_causal_lm

# Configuration keys that change attention or logits in a way that is not computed here.
_REFUSED_KEYS = {
    "attn_logit_softcapping": "soft-capped attention scores",
    "final_logit_softcapping": "soft-capped logits",
    "kv_lora_rank": "multi-head latent attention (MLA)",
    "logit_scale": "scaled logits",
    "logits_scaling": "scaled logits",
    "attention_chunk_size": "chunked attention",
    "alibi": "ALiBi position biases",
}
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def check_readable(model: nn.Module, attention: str) -> None:
    """Refuses a model that cannot read rows as `model.attention` has them: packed, or with `library` of their own.

    Raises:
        UserError: names the model's class and the reason.
    """
    if attention == LIBRARY:
        check_own_rows(find_causal_lm(model))
    else:
        check_supported(model)


def check_supported(model: nn.Module) -> None:
    """Refuses a model whose attention or head is not what the shared-prefix forward computes.

    Raises:
        UserError: names the model's class and the reason.
    """
    lm = find_causal_lm(model)
    if not getattr(lm, "_supports_attention_backend", False):
        raise cannot_share(
            f"{type(lm).__name__} does not take its attention from transformers' AttentionInterface, "
            "so the shared-prefix forward cannot reach it"
        )
    check_config(lm.config)


def check_every_layer_called(model: PreTrainedModel, callers: int) -> None:
    """Refuses a model whose layers, some or all, attend by code of their own: they would see siblings.

    A forward shows it, whatever the model says of itself: at start one on fake tensors (probe.py), then every one.

    Args:
        model: the causal language model, after a forward.
        callers: how many of its layers asked for our attention in that forward.

    Raises:
        UserError: not every layer asked.
    """
    layers = model.config.get_text_config().num_hidden_layers
    if callers != layers:
        raise cannot_share(
            f"{type(model).__name__} computes attention by code of its own in {layers - callers} of its {layers} "
            "layers, which the shared-prefix forward cannot reach"
        )


def check_config(
    config: PreTrainedConfig, *, longest_sequence: int | None = None, attention: str = "sdpa"
) -> None:
    """The same from a configuration alone, before any weights are read.

    Args:
        config: the model's configuration.
        longest_sequence: the longest prompt + answer in the data, in tokens, to hold against a window.
        attention: `model.attention`. With `library` nothing is asked but that a row's log-prob is its own: LongRoPE
            picks its frequencies by the row's longest position, dynamic RoPE remembers the longest row so far.
    """
    family = config.model_type
    _check_dynamic(config)
    if attention == LIBRARY:
        return
    if not _is_plain_text(config):
        raise cannot_share(
            f"{family} models are composites of a text model and others, of which the shared-prefix forward trains "
            "none yet",
            instead="use a text model's checkpoint",
        )
    for key, what in _REFUSED_KEYS.items():
        if _value(config, key) not in (None, False, 1.0):
            raise cannot_share(
                f"{family} models use {what} ({key}), which the shared-prefix forward does not support"
            )
    if "longrope" in rope_types(config):
        raise cannot_share(
            f"This {family} model has LongRoPE, which picks its frequencies by the row's longest position, so that a "
            "log-prob would depend on packing",
            instead="override it with model.rope.type (yarn, linear, default)",
        )
    layer_types = getattr(config, "layer_types", None)
    others = sorted(set(layer_types or ()) - _LAYER_TYPES)
    if others:
        raise cannot_share(
            f"{family} models have layers of type {', '.join(others)}, which the shared-prefix forward does not support"
        )
    window = effective_window(config)
    if window is not None and longest_sequence is not None and window < longest_sequence:
        raise cannot_share(
            f"The model's sliding window of {window} tokens is shorter than the longest prompt with its answer "
            f"({longest_sequence} tokens)",
            instead=f"set data.max_length={window}",
        )


def _check_dynamic(config: PreTrainedConfig) -> None:
    """Refuses dynamic RoPE, with which no way of reading rows gives a log-prob of the row alone."""
    if "dynamic" in rope_types(config):
        raise UserError(
            f"This {config.model_type} model has dynamic RoPE, which scales by the longest position read so far, so "
            "that a log-prob would depend on packing and order: set model.rope.length=TOKENS to hold it at one length."
        )


def _is_plain_text(config: PreTrainedConfig) -> bool:
    """Whether the configuration is a text model's own, not one that holds another's."""
    try:
        return config.get_text_config() is config
    except ValueError:  # it holds several
        return False


def _value(config: PreTrainedConfig, key: str) -> Any:
    """A key's value; None where there is none, and a word where layers have values of their own."""
    try:
        return getattr(config, key, None)
    except RuntimeError:  # as the library says that it differs
        return "another in each layer"


def effective_window(config: PreTrainedConfig) -> int | None:
    """The sliding window that some layer uses, in tokens; None where attention is full."""
    layer_types = getattr(config, "layer_types", None)
    if layer_types is not None and "sliding_attention" not in layer_types:
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)
