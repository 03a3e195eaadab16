"""In which precision weights are kept and products computed: what `model.dtype=auto` is, and what wrappers change."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from align.core.errors import AlignWarning
from align.models.loading import bfloat16_here, resolve_dtype
from align.models.settings import ModelSettings

if TYPE_CHECKING:
    from torch import nn

LOWER = (torch.bfloat16, torch.float16)


def trains_checkpoint_weights(model: ModelSettings) -> bool:
    """Whether weights of the checkpoint itself train: all of them, some in full, or routers beside an adapter."""
    adapter = model.adapter
    return adapter is None or adapter.trains_checkpoint_weights or model.moe.router == "train"


def training_dtype(model: ModelSettings) -> ModelSettings:
    """The model's settings with `dtype=auto` made definite for training.

    Weights that train are float32: bfloat16 has 8 bits of precision, so that a weight of 0.02 moves in steps of 1.2e-4
    and loses every smaller update. In 30 steps of AdamW at 5e-7 1 % of bfloat16 weights changed, and 99.7 % in float32.
    Weights under an adapter do not train, and are bfloat16 on a GPU that has it.
    """
    if model.dtype != "auto":
        return model
    low = bfloat16_here() and not trains_checkpoint_weights(model)
    return replace(model, dtype="bfloat16" if low else "float32")


def autocasts(model: ModelSettings) -> bool:
    """Whether `dtype=auto` goes with bfloat16 products: where it trains float32 weights on a GPU that has them."""
    return model.dtype == "auto" and bfloat16_here() and trains_checkpoint_weights(model)


def warn_of_low_weights(model: nn.Module) -> None:
    """Says in a line what is lost where weights train in bfloat16 without a copy in float32."""
    low = sum(p.numel() for p in model.parameters() if p.requires_grad and p.dtype in LOWER)
    if low:
        warnings.warn(
            f"{low:,} parameters train in bfloat16 or float16, which loses every step smaller than about 1/256 of a "
            "weight, at small learning rates nearly all: load them in float32 (the default of model.dtype) and compute "
            "products in bfloat16 (trainer.bf16=true).",
            AlignWarning,
            stacklevel=1,
        )


@dataclass(frozen=True)
class Precision:
    """In which types a model computes, beside the one that its weights were loaded in.

    Attributes:
        weights: to which parameters are cast before anything is computed (buffers, such as RoPE's frequencies, are
            not); None: as loaded.
        autocast: in which torch's autocast computes products; None: no autocast.
    """

    weights: torch.dtype | None = None
    autocast: torch.dtype | None = None

    def weights_dtype(self, model: ModelSettings) -> torch.dtype:
        """What the parameters of a model loaded by `model` are when it computes."""
        return self.weights or resolve_dtype(model.dtype)


def cast_parameters(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Casts floating-point parameters in place, and no buffers, as DeepSpeed and FSDP2 do; None leaves them."""
    if dtype is None:
        return
    for parameter in model.parameters():
        if parameter.dtype in (torch.float32, *LOWER):
            parameter.data = parameter.data.to(dtype)
