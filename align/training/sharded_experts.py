"""Mixtures of experts under ZeRO-3, which expects every process to call the same modules equally often."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedConfig, TrainingArguments

from align.core.errors import UserError
from align.distributed.wrappers import launched_wrapper
from align.models.loading import causal_lm_class, load_config
from align.models.settings import ModelSettings
from align.models.structure import experts, find_causal_lm


def check_sharded_experts(settings: ModelSettings, arguments: TrainingArguments) -> None:
    """Refuses, before weights load, experts that ZeRO-3 cannot compute.

    Raises:
        UserError: as `prepare_sharded_experts`.
    """
    config = load_config(settings)
    _check(
        causal_lm_class(settings, config), config, eager=settings.moe.experts == "eager", arguments=arguments
    )


def prepare_sharded_experts(model: nn.Module, arguments: TrainingArguments) -> None:
    """Tells DeepSpeed, before it makes its engine, to treat a mixture's layers as any other.

    It takes the blocks of Mixtral, Qwen2-MoE and Qwen3-MoE for leaves otherwise, whose gradients it collects at each
    backward pass through them, and fails where a micro-batch has several rows. Leaves were for experts that are modules
    each; transformers' are one weight a layer, which every process uses. `leaf_module` in the launch configuration is
    left as it is.

    Raises:
        UserError: experts that are computed one after the other: each calls its activation, so that processes whose
            tokens choose unlike experts would wait for each other.
    """
    lm = find_causal_lm(model)
    eager = getattr(lm.config, "_experts_implementation", None) == "eager"
    if _check(type(lm), lm.config, eager=eager, arguments=arguments):
        plugin: Any = arguments.deepspeed_plugin
        plugin.deepspeed_config["zero_optimization"].setdefault("leaf_module", {"classes": []})


def _check(kind: Any, config: PreTrainedConfig, *, eager: bool, arguments: TrainingArguments) -> bool:
    """Whether a mixture of experts trains under ZeRO-3; refused where its experts run one after the other."""
    if not launched_wrapper(arguments).startswith("zero3") or experts(config.get_text_config()) <= 1:
        return False
    if kind is not None and not kind._can_set_experts_implementation():
        raise UserError(
            f"{kind.__name__} computes its experts by code of its own, in which processes under ZeRO-3 can wait for "
            "each other for ever: choose the launch configuration fsdp2, zero2 or ddp."
        )
    if eager:
        raise UserError(
            "Experts that are computed one after the other (model.moe.experts=eager) make processes under ZeRO-3 wait "
            "for each other for ever: set model.moe.experts=grouped."
        )
    return True
