"""Which models the shared-prefix forward computes exactly; the others are refused by name."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import UserError
from align.longseq.own_logits import check_own_rows
from align.longseq.settings import cannot_share
from align.models.rope import rope_types
from align.models.settings import LIBRARY
from align.models.structure import find_causal_lm
from align.models.text_part import is_composite, text_config, text_decoder


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
    attends = text_decoder(lm) if is_composite(lm.config) else lm
    if not getattr(attends, "_supports_attention_backend", False):
        raise cannot_share(
            f"{type(lm).__name__} does not take its attention from transformers' AttentionInterface, "
            "so the shared-prefix forward cannot reach it"
        )
    check_config(lm.config)


def check_every_layer_called(model: PreTrainedModel, callers: int) -> None:
    """Refuses a model whose layers, some or all, attend by code of their own: they would see siblings.

    A forward shows it, whatever the model says of itself: at start that of a small copy (probe.py), then every one.

    Args:
        model: the causal language model, after a forward.
        callers: how many of its layers asked for our attention in that forward.

    Raises:
        UserError: some layer did not ask.
    """
    layers = text_config(model.config).num_hidden_layers
    if callers < layers:
        raise cannot_share(
            f"{type(model).__name__} computes attention by code of its own in {layers - callers} of its {layers} "
            "layers, which the shared-prefix forward cannot reach"
        )


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
    if attention == LIBRARY:
        return
    if "longrope" in rope_types(config):
        raise cannot_share(
            f"This {family} model has LongRoPE, which picks its frequencies by the row's longest position, so that a "
            "log-prob would depend on packing",
            instead="override it with model.rope.type (yarn, linear, default)",
        )


def _check_dynamic(config: PreTrainedConfig) -> None:
    """Refuses dynamic RoPE, with which no way of reading rows gives a log-prob of the row alone."""
    if "dynamic" in rope_types(config):
        raise UserError(
            f"This {config.model_type} model has dynamic RoPE, which scales by the longest position read so far, so "
            "that a log-prob would depend on packing and order: set model.rope.length=TOKENS to hold it at one length."
        )
