"""What can be said against the group `model` before a model or torch is loaded."""

from __future__ import annotations

from align.core.config import check_choice
from align.core.errors import UserError
from align.models.paths import check_path
from align.models.quantization import check_quantization
from align.models.rope import TYPES
from align.models.settings import DTYPES, ModelSettings


def check_model(settings: ModelSettings) -> None:
    """Refuses settings of the policy that contradict each other or this machine; reads no weights, imports no torch.

    Raises:
        UserError: an unknown dtype or RoPE type, a quantisation that cannot train here, `modules_to_save` without
            LoRA, or a path that no model can be loaded from.
    """
    check_choice("model.dtype", settings.dtype, DTYPES)
    check_quantization(settings.quantization, lora=settings.lora.r > 0)
    if settings.rope.type is not None:
        check_choice("model.rope.type", settings.rope.type, TYPES)
    if settings.lora.modules_to_save and settings.lora.r == 0:
        raise UserError(
            "model.lora.modules_to_save names what trains beside LoRA, but model.lora.r=0 trains all parameters: "
            "set model.lora.r, or leave it empty."
        )
    check_path(settings.path)
