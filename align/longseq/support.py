"""Which models the shared-prefix forward computes exactly; the others are refused by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import UserError
from align.longseq.mixers import attends, mixer_rule
from align.models.rope import rope_types
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
_ATTENDING_TYPES = {"full_attention", "sliding_attention"}
# Layers with a state that runs along the row; a hybrid one has attention beside it.
_STATE_TYPES = {"linear_attention", "conv", "hybrid"}
# Layers that mix no tokens.
_TOKENWISE_TYPES = {"mlp", "moe"}
_LAYER_TYPES = _ATTENDING_TYPES | _STATE_TYPES | _TOKENWISE_TYPES
# In a module's name: one of the copies that PEFT's `modules_to_save` makes.
_COPIES = re.compile(r"\.(original_module|modules_to_save\.[^.]+)(?=\.|$)")


def check_supported(model: nn.Module) -> None:
    """Refuses a model whose attention or head is not what the shared-prefix forward computes.

    Raises:
        UserError: names the model's class and the reason.
    """
    lm = find_causal_lm(model)
    # The library's own word is about more than attention, and most of its models with states do not give it.
    states = keeps_state(lm.config) and all(map(_known, _mixing_layers(lm)))
    if not (states or getattr(lm, "_supports_attention_backend", False)):
        raise UserError(
            f"{type(lm).__name__} does not take its attention from transformers' AttentionInterface, "
            "so the shared-prefix forward cannot reach it: use a model class that does."
        )
    check_config(lm.config)


def check_every_layer_called(model: PreTrainedModel, callers: Collection[nn.Module]) -> None:
    """Refuses a model of which some module mixes tokens by code of its own: an answer would see its siblings.

    A forward shows it, whatever the model says of itself: at start one on fake tensors (probe.py), then every one.

    Args:
        model: the causal language model, after a forward.
        callers: its modules that asked for our attention in that forward, or ran by our spans.

    Raises:
        UserError: a layer in which none did, unless its type mixes no tokens, or a module that is known to mix
            tokens and did not.
    """
    called = set(callers)
    silent = [layer for layer in _mixing_layers(model) if not _reached(layer, called)]
    if silent:
        raise UserError(
            f"{type(model).__name__} computes attention by code of its own in {len(silent)} of its "
            f"{len(_layers(model))} layers, which the shared-prefix forward cannot reach: use a model class that does "
            "not."
        )


def keeps_state(config: PreTrainedConfig) -> bool:
    """Whether some layer keeps a state that runs along the row, which no other process can share."""
    return bool(set(getattr(config, "layer_types", None) or ()) & _STATE_TYPES)


def check_degree(config: PreTrainedConfig, degree: int) -> None:
    """Refuses to share rows of a model with such layers among processes, before any weights are read.

    Args:
        config: the model's configuration.
        degree: `parallel.degree`.

    Raises:
        UserError: what to set instead.
    """
    if degree > 1 and keeps_state(config):
        raise UserError(
            f"{config.model_type} models have layers that keep a state, which runs along the whole row: "
            f"set parallel.degree=1 in place of {degree}."
        )


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder's layers: the first of its lists of modules that is as long as the model has layers."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [module for module in model.get_decoder().modules() if isinstance(module, nn.ModuleList)]
    return list(next((each for each in lists if len(each) == count), lists[0] if lists else [model]))


def _mixing_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that mix tokens: all but those that the configuration calls MLPs, where nothing else is known."""
    layers = _layers(model)
    types = getattr(model.config.get_text_config(), "layer_types", None) or []
    if len(types) != len(layers):
        return layers
    return [
        layer
        for layer, kind in zip(layers, types, strict=True)
        if kind not in _TOKENWISE_TYPES or _known(layer)
    ]


def _known(layer: nn.Module) -> bool:
    """Whether a layer has a module that takes its attention from the library's interface, or keeps a state."""
    return any(attends(type(module)) or mixer_rule(type(module)) is not None for module in layer.modules())


def _reached(layer: nn.Module, called: set[nn.Module]) -> bool:
    """Whether some module of the layer was called, and each that is known to mix tokens.

    Of a module that PEFT trains whole there are two, of which one is called; a mixer may be made of others.
    """
    groups: defaultdict[str, bool] = defaultdict(bool)
    inside: list[str] = []
    for name, module in layer.named_modules():
        known = mixer_rule(type(module)) is not None
        if (known or attends(type(module))) and not any(name.startswith(outer) for outer in inside):
            groups[_COPIES.sub("", name)] |= module in called
        if known:
            inside.append(f"{name}.")
    return all(groups.values()) and any(module in called for module in layer.modules())


def check_config(config: PreTrainedConfig, *, longest_sequence: int | None = None) -> None:
    """The same from a configuration alone, before any weights are read.

    Args:
        config: the model's configuration.
        longest_sequence: the longest prompt + answer in the data, in tokens, to hold against a window.
    """
    family = config.model_type
    if not _is_plain_text(config):
        raise UserError(
            f"{family} models are composites of a text model and others, of which the shared-prefix forward trains "
            "none yet: use a text model's checkpoint."
        )
    for key, what in _REFUSED_KEYS.items():
        if _value(config, key) not in (None, False, 1.0):
            raise UserError(
                f"{family} models use {what} ({key}), which the shared-prefix forward does not support."
            )
    if "dynamic" in rope_types(config):
        raise UserError(
            f"This {family} model has dynamic RoPE, which scales by the longest position read so far, so that a "
            "log-prob would depend on packing and order: set model.rope.length=TOKENS to hold it at one length."
        )
    if "longrope" in rope_types(config):
        raise UserError(
            f"This {family} model has LongRoPE, which picks its frequencies by the row's longest position, so that a "
            "log-prob would depend on packing: override it with model.rope.type (yarn, linear, default)."
        )
    layer_types = getattr(config, "layer_types", None)
    others = sorted(set(layer_types or ()) - _LAYER_TYPES)
    if others:
        raise UserError(f"{family} models have layers of type {', '.join(others)}, which are not supported.")
    window = effective_window(config)
    if window is not None and longest_sequence is not None and window < longest_sequence:
        raise UserError(
            f"The model's sliding window of {window} tokens is shorter than the longest prompt with its answer "
            f"({longest_sequence} tokens): set data.max_length={window} or use a model without a window."
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
