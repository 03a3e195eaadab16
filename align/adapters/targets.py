"""Which modules an adapter is put on: the names in the configuration as the model at hand has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.core.errors import UserError
from align.models.routers import routers_of
from align.models.text_part import is_composite, text_modules

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

ALL_LINEAR, ALL_NORMS = "all-linear", "all-norms"
EMBEDDINGS = {"embed_tokens", "lm_head"}
_KEYS_AND_VALUES = ("kv_a_proj_with_mqa", "kv_b_proj")
# What a projection is called where attention is latent (DeepSeek, Kimi), and where one makes all three (Phi-3).
_LATENT = {"q_proj": ("q_a_proj", "q_b_proj"), "k_proj": _KEYS_AND_VALUES, "v_proj": _KEYS_AND_VALUES}
_FUSED = dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj")


def targets_of(
    model: PreTrainedModel, wanted: Sequence[str], *, key: str = "adapter.target_modules"
) -> list[str]:
    """The last names of the target modules; `q_proj`, `k_proj` and `v_proj` under the names that the model has.

    Of DeepSeek-V3 `k_proj` is `kv_a_proj_with_mqa` and `kv_b_proj`, of Phi-3 `qkv_proj`; of Kimi-Linear, whose layers
    differ, `k_proj` and both of the former. `[all-linear]` is every linear layer but the head and those of routers,
    `[all-norms]` every normalisation layer. `key` named them.
    """
    linear = linear_names(model)
    if list(wanted) == [ALL_LINEAR]:
        return linear
    names = {leaf(name) for name, _ in text_modules(model)}
    targets: set[str] = set()
    for one in wanted:
        found = {one, *_LATENT.get(one, ())} & names or {_FUSED.get(one, one)} & names
        if one == ALL_NORMS:
            found = {leaf(name) for name, module in text_modules(model) if is_norm(module)}
        if not found:
            raise UserError(
                f"{key} names {one}, which {type(model).__name__} does not have: name some of "
                f"{', '.join(linear)}, or set {key}=[{ALL_LINEAR}]."
            )
        targets |= found
    return sorted(targets)


def linear_names(model: PreTrainedModel) -> list[str]:
    """The last names of all linear layers but the head and those of routers."""
    from torch.nn import Linear

    left_out = {model.get_output_embeddings()}
    left_out.update(part for router in routers_of(model).values() for part in router.modules())
    modules = [(name, module) for name, module in text_modules(model) if module not in left_out]
    return sorted({leaf(name) for name, module in modules if isinstance(module, Linear)})


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a normalisation layer: no library class is common to all, but the name is."""
    return "Norm" in type(module).__name__ and any(True for _ in module.parameters(recurse=False))


def saved_of(model: PreTrainedModel, wanted: Sequence[str], targets: Sequence[str]) -> list[str]:
    """`modules_to_save`, each the end of some module's name (`norm` stands for all normalisation layers).

    Of a composite the whole names of the text part's modules.
    """
    names = [name for name, _ in text_modules(model)]
    for one in wanted:
        if not any(name.endswith(one) for name in names):
            raise UserError(
                f"adapter.modules_to_save names {one}, which {type(model).__name__} does not have."
            )
        if one in targets:
            raise UserError(
                f"adapter names {one} in both target_modules and modules_to_save: it trains in one way or the other."
            )
    if is_composite(model.config):
        return [name for name in names if name.endswith(tuple(wanted))]
    return list(wanted)


def check_tied(model: PreTrainedModel, targets: Sequence[str]) -> None:
    """Refuses an adapter on one of two tied weights, which would then differ from the other."""
    on = sorted(EMBEDDINGS & set(targets))
    if on and is_tied(model):
        raise UserError(
            f"adapter.target_modules names {', '.join(on)}, but this {type(model).__name__} ties its output head to "
            "its embedding: use adapter.modules_to_save=[embed_tokens]."
        )


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the output head is the token embedding."""
    return bool(getattr(model.config, "tie_word_embeddings", False))


def within_text_part(model: PreTrainedModel, targets: Sequence[str]) -> list[str] | str:
    """The same modules as PEFT takes them; of a composite a pattern of whole names, none of them of another part.

    For Gemma-3 and `q_proj` that is `model\\.language_model\\.layers\\.\\d+\\.self_attn\\.q_proj`.
    """
    if not is_composite(model.config):
        return list(targets)
    names = [name for name, _ in text_modules(model) if leaf(name) in targets]
    return "|".join(sorted({re.sub(r"\b\d+\b", r"\\d+", re.escape(name)) for name in names}))


def leaf(name: str) -> str:
    """`q_proj` of `model.layers.0.self_attn.q_proj`."""
    return name.rsplit(".", 1)[-1]
