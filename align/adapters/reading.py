"""The groups `model`, `adapter` and `attention` of a command, read as one: which model, what trains, who sees whom."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from align.adapters.adapter import Adapter
from align.adapters.lora import Lora
from align.core.errors import UserError
from align.core.instantiate import build
from align.models.reading import typed_model
from align.models.settings import LoraSettings, ModelSettings
from align.patterns.layers import Chosen, LayerPatterns


def read_model(config: DictConfig) -> ModelSettings:
    """Group `model` with what `adapter` and `attention` describe; `model.lora` is another name of `adapter=lora`.

    Args:
        config: a command's whole configuration; those that do not train have no group `adapter`.

    Raises:
        UserError: a wrong key or value, or an adapter that is named in both ways.
    """
    model = typed_model(config)
    if model.adapter is not None:
        raise UserError(
            "model.adapter is no key: adapters are a group of their own, adapter=lora adapter.r=16."
        )
    if model.layer_patterns is not None:
        raise UserError(
            "model.layer_patterns is no key: attention is a group of its own, attention=window attention.window=4096."
        )
    adapter = _named(config)
    check_lora_keys(model.lora, other=adapter)
    if model.lora.r:
        lora = Lora(**vars(model.lora))
        lora.check()
        adapter = lora
    return replace(model, lora=LoraSettings(), adapter=adapter, layer_patterns=_patterns(config))


def check_lora_keys(lora: LoraSettings, *, other: Adapter | None) -> None:
    """Refuses `model.lora` beside another adapter, and keys of it that nothing would read.

    Args:
        lora: group key `model.lora`.
        other: of the group `adapter`.
    """
    if lora == LoraSettings():
        return
    if other is not None:
        raise UserError(
            f"model.lora is another name of adapter=lora, and adapter={other.kind} is set too: leave model.lora out."
        )
    if lora.r == 0:
        named = next(name for name, value in vars(lora).items() if value != getattr(LoraSettings(), name))
        raise UserError(
            f"model.lora.{named} is set, but model.lora.r=0 trains all parameters: set model.lora.r, or leave "
            f"model.lora.{named} out."
        )


def _patterns(config: DictConfig) -> Chosen | None:
    """What the group `attention` describes; None for `own`, and for commands without the group."""
    if OmegaConf.select(config, "attention._target_") is None:
        unread = [str(key) for key in config.get("attention") or {} if key != "_target_"]
        if unread:
            raise UserError(
                f"attention.{unread[0]} is set, but attention=own leaves layers as the model has them: name a pattern, "
                "attention=sink_window."
            )
        return None
    patterns: LayerPatterns = build(config, "attention")
    keys: Any = OmegaConf.to_container(config.attention, resolve=True)
    return Chosen.of(patterns, keys)


def _named(config: DictConfig) -> Adapter | None:
    """What the group `adapter` describes; None for `none`, and for commands without the group."""
    if OmegaConf.select(config, "adapter._target_") is None:
        unread = [str(key) for key in config.get("adapter") or {} if key != "_target_"]
        if unread:
            raise UserError(
                f"adapter.{unread[0]} is set, but adapter=none trains all parameters: name an adapter, adapter=lora."
            )
        return None
    adapter: Adapter = build(config, "adapter")
    return adapter
