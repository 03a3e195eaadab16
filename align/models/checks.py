"""What can be said against the group `model` before a model or torch is loaded."""

from __future__ import annotations

from align.core.config import check_choice
from align.core.errors import UserError
from align.models.extra_tokens import check_extra_tokens
from align.models.paths import check_path
from align.models.quantization import check_quantization
from align.models.rope import TYPES
from align.models.settings import DTYPES, KERNELS, OF_LIBRARY, LoraSettings, ModelSettings, no_balance

MOST_RANK = 65_536  # no layer of a model is as wide


def check_model(settings: ModelSettings) -> None:
    """Refuses settings of the policy that contradict each other or this machine; reads no weights, imports no torch.

    Raises:
        UserError: an unknown dtype, kernels or RoPE type, `model.moe` with words or numbers that it does not take, a
            quantisation that cannot train here, `model.extra_tokens` that are no tokens,
            `modules_to_save` without LoRA, or a path that no model can be loaded from.
    """
    check_choice("model.dtype", settings.dtype, DTYPES)
    check_choice("model.kernels", settings.kernels, KERNELS)
    check_quantization(settings.quantization, lora=settings.lora.r > 0)
    if settings.rope.type is not None:
        check_choice("model.rope.type", settings.rope.type, TYPES)
    if settings.lora.modules_to_save and settings.lora.r == 0:
        raise UserError(
            "model.lora.modules_to_save names what trains beside LoRA, but model.lora.r=0 trains all parameters: "
            "set model.lora.r, or leave it empty."
        )
    check_lora(settings.lora)
    check_extra_tokens(settings.extra_tokens)
    settings.moe.check()
    if settings.moe.balance and settings.attention in OF_LIBRARY:
        raise UserError(no_balance(settings.attention))
    check_path(settings.path)


def check_lora(lora: LoraSettings) -> None:
    """Numbers that no adapter can have."""
    if not 0 <= lora.r <= MOST_RANK:
        raise UserError(
            f"model.lora.r={lora.r} is no rank: give a number from 0 (no adapter) to {MOST_RANK}."
        )
    if lora.alpha <= 0:
        raise UserError(f"model.lora.alpha={lora.alpha} would switch the adapter off: give a number above 0.")
    if not 0.0 <= lora.dropout < 1.0:
        raise UserError(
            f"model.lora.dropout={lora.dropout} is no probability: give a number from 0 to below 1."
        )
