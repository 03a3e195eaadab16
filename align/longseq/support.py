"""Which models the shared-prefix forward computes exactly; the others are refused by name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import UserError
from align.longseq.layer_pattern import STATE_TYPES, TOKENWISE_TYPES
from align.longseq.mixers import attends, mixer_rule
from align.longseq.own_logits import check_own_rows
from align.longseq.settings import cannot_share
from align.models.query_scale import scale_of
from align.models.rope import rope_types, switches_by_length
from align.models.settings import LIBRARY, OF_LIBRARY
from align.models.structure import find_causal_lm
from align.models.text_part import is_composite, text_config, text_decoder
from align.patterns.layers import limit_of, patterns_of
from align.query_scale.scale import KEY

# In a module's name: one of the copies that PEFT's `modules_to_save` makes.
_COPIES = re.compile(r"\.(original_module|modules_to_save\.[^.]+)(?=\.|$)")


def check_readable(model: nn.Module, attention: str) -> None:
    """Refuses a model that cannot read rows as `model.attention` has them: by our attention, or the library's.

    Raises:
        UserError: names the model's class and the reason.
    """
    if attention in OF_LIBRARY:
        check_own_rows(find_causal_lm(model))
        _check_scaled(find_causal_lm(model))
    else:
        check_supported(model)


def _check_scaled(lm: PreTrainedModel) -> None:
    """Refuses a query scale that the library's attention would not have in some layer."""
    if scale_of(lm.config) is None:
        return
    for layer in _mixing_layers(lm):
        kinds = [type(module) for module in layer.modules()]
        if not any(attends(kind) or mixer_rule(kind) is not None for kind in kinds):
            raise UserError(
                f"{KEY}: {type(lm).__name__} does not take its attention from transformers' AttentionInterface, which "
                "scales queries: use another model."
            )


def check_supported(model: nn.Module) -> None:
    """Refuses a model whose attention or head is not what the shared-prefix forward computes.

    Raises:
        UserError: names the model's class and the reason.
    """
    lm = find_causal_lm(model)
    # The library's own word is about more than attention, and most of its models with states do not give it.
    states = keeps_state(lm.config) and all(map(_known, _mixing_layers(lm)))
    reached = text_decoder(lm) if is_composite(lm.config) else lm
    if not (states or getattr(reached, "_supports_attention_backend", False)):
        raise cannot_share(
            f"{type(lm).__name__} does not take its attention from transformers' AttentionInterface, "
            "so the shared-prefix forward cannot reach it"
        )
    check_config(lm.config)


def check_every_layer_called(model: PreTrainedModel, callers: Collection[nn.Module]) -> None:
    """Refuses a model of which some module mixes tokens by code of its own: an answer would see its siblings.

    A forward shows it, whatever the model says of itself: at start that of a small copy (probe.py), then every one.

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
        raise cannot_share(
            f"{type(model).__name__} computes attention by code of its own in {len(silent)} of its "
            f"{len(_layers(model))} layers, which the shared-prefix forward cannot reach"
        )


def keeps_state(config: PreTrainedConfig) -> bool:
    """Whether some layer keeps a state that runs along the row, which no other process can share."""
    return bool(set(getattr(text_config(config), "layer_types", None) or ()) & STATE_TYPES)


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
    count = text_config(model.config).num_hidden_layers
    lists = [module for module in text_decoder(model).modules() if isinstance(module, nn.ModuleList)]
    return list(next((each for each in lists if len(each) == count), lists[0] if lists else [model]))


def _mixing_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers that mix tokens: all but those that the configuration calls MLPs, where nothing else is known."""
    layers = _layers(model)
    types = getattr(text_config(model.config), "layer_types", None) or []
    if len(types) != len(layers):
        return layers
    return [
        layer
        for layer, kind in zip(layers, types, strict=True)
        if kind not in TOKENWISE_TYPES or _known(layer)
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


def check_config(config: PreTrainedConfig, *, attention: str = "sdpa") -> None:
    """The same from a configuration alone, before any weights are read; of a composite its text part's.

    Args:
        config: the model's configuration.
        attention: `model.attention`. With `library` nothing is asked but that a row's log-prob is its own: LongRoPE
            picks its frequencies by the row's longest position, dynamic RoPE remembers the longest row so far.
    """
    family = config.model_type
    config = text_config(config)
    _check_dynamic(config)
    _check_sparse(config)
    if limit_of(config) is not None:
        raise UserError(
            "attention.limit holds where a model answers and in suite=perplexity, not for scored pairs: set "
            "attention.limit=null."
        )
    if attention in OF_LIBRARY and patterns_of(config) is not None:
        raise UserError(
            f"The group attention has patterns for layers, which model.attention={attention} does not compute: set "
            "attention=own, or model.attention=auto."
        )
    if attention == LIBRARY:
        return
    if switches_by_length(config):
        raise cannot_share(
            f"This {family} model has LongRoPE, which picks its frequencies by the row's longest position, so that a "
            "log-prob would depend on packing",
            instead="override it with model.rope.type (yarn, linear, default)",
        )


def _check_sparse(config: PreTrainedConfig) -> None:
    """Refuses BigBird's blocks, which it takes in long rows alone, and which see what lies behind them."""
    if getattr(config, "attention_type", None) == "block_sparse" and not config.is_encoder_decoder:
        raise UserError(
            f"This {config.model_type} model has attention_type=block_sparse, which reads long rows in both "
            "directions and has no log-probs of answers: set attention_type to original_full in its config.json."
        )


def _check_dynamic(config: PreTrainedConfig) -> None:
    """Refuses dynamic RoPE, with which no way of reading rows gives a log-prob of the row alone."""
    if "dynamic" in rope_types(config):
        raise UserError(
            f"This {config.model_type} model has dynamic RoPE, which scales by the longest position read so far, so "
            "that a log-prob would depend on packing and order: set model.rope.length=TOKENS to hold it at one length."
        )
