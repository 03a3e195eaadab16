"""LoRA adapters, and what trains in full beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoraConfig, get_peft_model
from torch.nn import Linear

from align.core.errors import UserError
from align.models.routers import routers_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from align.models.settings import LoraSettings

_EMBEDDINGS = {"embed_tokens", "lm_head"}


def add_lora(model: PreTrainedModel, settings: LoraSettings) -> torch.nn.Module:
    """The model with LoRA adapters where `settings.r > 0`, else the model itself (all parameters train).

    Where the output head is tied to the token embedding, `modules_to_save` with either of them trains the
    one weight that they share.

    Raises:
        UserError: a module that the model does not have; LoRA on a tied embedding, which two adapters would
            change in two ways.
    """
    if settings.r == 0:
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
        target_modules=targets,
        modules_to_save=saved or None,
        ensure_weight_tying=tied and bool(_EMBEDDINGS & set(saved)),
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(
            f"model.lora cannot be applied to {type(model).__name__}: {' '.join(str(error).split())}"
        ) from error


def _saved_of(model: PreTrainedModel, settings: LoraSettings, targets: list[str]) -> list[str]:
    """`modules_to_save`, each the end of some module's name (`norm` stands for all normalisation layers)."""
    names = [name for name, _ in model.named_modules()]
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
    return list(settings.modules_to_save)


def _targets_of(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """The target modules; a model that fuses q, k and v (Phi-3) has them under its own name.

    `[all-linear]` is every linear layer but the head and those of routers.
    """
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    if settings.target_modules == ["all-linear"]:
        left_out = {model.get_output_embeddings()}
        left_out.update(part for router in routers_of(model).values() for part in router.modules())
        linear = [
            name
            for name, module in model.named_modules()
            if isinstance(module, Linear) and module not in left_out
        ]
        return sorted({name.rsplit(".", 1)[-1] for name in linear})
    fused = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    targets = [name if name in names else fused.get(name, name) for name in settings.target_modules]
    missing = sorted(set(targets) - names)
    if missing:
        raise UserError(
            f"model.lora.target_modules names {', '.join(missing)}, which {type(model).__name__} does not have."
        )
    return sorted(set(targets))
