"""What can be said against the group `model` before a model or torch is loaded."""

from __future__ import annotations

from align.core.config import check_choice
from align.core.errors import UserError
from align.models.extra_tokens import check_extra_tokens
from align.models.paths import check_path
from align.models.quantization import check_quantization
from align.models.rope import TYPES
from align.models.settings import DTYPES, KERNELS, OF_LIBRARY, ModelSettings, no_balance


def check_model(settings: ModelSettings) -> None:
    """Refuses settings of the policy that contradict each other or this machine; reads no weights, imports no torch.

    Raises:
        UserError: an unknown dtype, kernels or RoPE type, `model.moe` with words or numbers that it does not take, a
            quantisation that cannot train here, `model.extra_tokens` that are no tokens, or a path that no model can be
            loaded from.
    """
    check_choice("model.dtype", settings.dtype, DTYPES)
    check_choice("model.kernels", settings.kernels, KERNELS)
    check_quantization(settings.quantization, adapter=settings.adapter)
    if settings.rope.type is not None:
        check_choice("model.rope.type", settings.rope.type, TYPES)
    check_extra_tokens(settings.extra_tokens)
    settings.moe.check()
    if settings.moe.balance and settings.attention in OF_LIBRARY:
        raise UserError(no_balance(settings.attention))
    check_path(settings.path)
