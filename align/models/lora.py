"""LoRA adapters, and what trains in full beside them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from peft import LoraConfig, get_peft_model
from torch.nn import Linear

from align.core.errors import UserError
from align.models.routers import routers_of
from align.models.text_part import freeze_other_parts, is_composite, text_modules

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from align.models.settings import LoraSettings

_EMBEDDINGS = {"embed_tokens", "lm_head"}
_KEYS_AND_VALUES = ("kv_a_proj_with_mqa", "kv_b_proj")
# What a projection is called where attention is latent (DeepSeek, Kimi), and where one makes all three (Phi-3).
_LATENT = {"q_proj": ("q_a_proj", "q_b_proj"), "k_proj": _KEYS_AND_VALUES, "v_proj": _KEYS_AND_VALUES}
_FUSED = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj")


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> torch.nn.Module:
    """The model with LoRA adapters where `settings.r > 0`, else the model itself (all parameters train).

    Of a composite only the text part gets adapters, and only its parameters train, whatever modules of the same names
    its other parts have.

    Where the output head is tied to the token embedding, `modules_to_save` with either of them trains the
    one weight that they share.

    Raises:
        UserError: a module that the model does not have; LoRA on a tied embedding, which two adapters would
            change in two ways.
    """
    if settings.r == 0:
        freeze_other_parts(model)
        return model
    targets = _targets_of(model, settings)
    saved = _saved_of(model, settings, targets)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    if tied and _EMBEDDINGS & set(targets):
        raise UserError(
            f"model.lora.target_modules names {', '.join(sorted(_EMBEDDINGS & set(targets)))}, but this "
            f"{type(model).__name__} ties its output head to its embedding: "
            "use model.lora.modules_to_save=[embed_tokens]."
        )
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_within_text_part(model, targets),
        modules_to_save=saved or None,
        ensure_weight_tying=tied and bool(_EMBEDDINGS & {_leaf(name) for name in saved}),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"model.lora cannot be applied to {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error


def _saved_of(model: PreTrainedModel, settings: LoraSettings, targets: list[str]) -> list[str]:
    """`modules_to_save`, each the end of some module's name (`norm` stands for all normalisation layers).

    Of a composite the whole names of the text part's modules.
    """
    names = [name for name, _ in text_modules(model)]
    for wanted in settings.modules_to_save:
        if not any(name.endswith(wanted) for name in names):
            raise UserError(
                f"model.lora.modules_to_save names {wanted}, which {type(model).__name__} does not have."
            )
        if wanted in targets:
            raise UserError(
                f"model.lora names {wanted} in both target_modules and modules_to_save: "
                "it trains in one way or the other."
            )
    if is_composite(model.config):
        return [name for name in names if name.endswith(tuple(settings.modules_to_save))]
    return list(settings.modules_to_save)


def _targets_of(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """The last names of the target modules; `q_proj`, `k_proj` and `v_proj` under the names that the model has.

    Of DeepSeek-V3 `k_proj` is `kv_a_proj_with_mqa` and `kv_b_proj`, of Phi-3 `qkv_proj`; of Kimi-Linear, whose layers
    differ, `k_proj` and both of the former. `[all-linear]` is every linear layer but the head and those of routers.
    """
    left_out = {model.get_output_embeddings()}
    left_out.update(part for router in routers_of(model).values() for part in router.modules())
    modules = [(name, module) for name, module in text_modules(model) if module not in left_out]
    linear = sorted({_leaf(name) for name, module in modules if isinstance(module, Linear)})
    if settings.target_modules == ["all-linear"]:
        return linear
    names = {_leaf(name) for name, _ in text_modules(model)}
    targets: set[str] = set()
    for wanted in settings.target_modules:
        found = {wanted, *_LATENT.get(wanted, ())} & names or {_FUSED.get(wanted, wanted)} & names
        if not found:
            raise UserError(
                f"model.lora.target_modules names {wanted}, which {type(model).__name__} does not have: name some of "
                f"{', '.join(linear)}, or set model.lora.target_modules=[all-linear]."
            )
        targets |= found
    return sorted(targets)


def _within_text_part(model: PreTrainedModel, targets: list[str]) -> list[str] | str:
    """The same modules as PEFT takes them; of a composite a pattern of whole names, none of them of another part.

    For Gemma-3 and `q_proj` that is `model\\.language_model\\.layers\\.\\d+\\.self_attn\\.q_proj`.
    """
    if not is_composite(model.config):
        return targets
    names = [name for name, _ in text_modules(model) if _leaf(name) in targets]
    return "|".join(sorted({re.sub(r"\b\d+\b", r"\\d+", re.escape(name)) for name in names}))


def _leaf(name: str) -> str:
    """`q_proj` of `model.layers.0.self_attn.q_proj`."""
    return name.rsplit(".", 1)[-1]
