"""QLoRA: the base model's weights in four bits, the adapter on top in full precision (arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from align.core.config import check_choice
from align.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

QUANTIZATIONS = ("none", "nf4")


def check_quantization(name: str, *, adapter: Any) -> None:
    """Refuses a quantisation that cannot train here, before any weights are read.

    Args:
        name: `model.quantization`.
        adapter: what trains; None: all parameters.

    Raises:
        UserError: unknown; no adapter, and four-bit weights do not train, or one that does not go on them; the package
            or a GPU is missing.
    """
    check_choice("model.quantization", name, QUANTIZATIONS)
    if name == "none":
        return
    if adapter is None:
        raise UserError(
            f"model.quantization={name} leaves nothing to train: four-bit weights are frozen, so set adapter=lora."
        )
    if not adapter.takes_four_bits:
        raise UserError(
            f"model.quantization={name} does not go with adapter={adapter.kind}, which has no layer for four-bit "
            "weights: set adapter=lora, or model.quantization=none."
        )
    require_quantization(name)


def require_quantization(name: str) -> None:
    """Refuses `nf4` where bitsandbytes or a CUDA GPU is missing."""
    if name == "none":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            f"model.quantization={name} needs the package bitsandbytes: "
            "install it with `pip install 'long-preference[qlora]'`, or set model.quantization=none."
        )
    import torch

    if not torch.cuda.is_available():
        raise UserError(
            f"model.quantization={name} needs a CUDA GPU, and none is visible: set model.quantization=none."
        )


def quantization_config(name: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """The library's configuration for `model.quantization`; None for `none`.

    NormalFloat-4 with doubly quantised constants, as in the paper (sections 3 and 4).

    Args:
        name: `none` or `nf4`.
        dtype: of the matrix products, in which weights are unpacked.
    """
    if name == "none":
        return None
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
