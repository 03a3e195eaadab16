"""What a model is made of: the language model inside any wrapper, its layers, its attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.models.patterned_attention import patterned
from align.models.settings import LIBRARY, OF_LIBRARY
from align.models.text_part import current_attention, set_attention, text_config, text_decoder


def find_causal_lm(model: nn.Module) -> PreTrainedModel:
    """The library's causal language model inside any wrapper (PEFT, DDP, FSDP, DeepSpeed)."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    raise ValueError(f"{type(model).__name__} holds no transformers model with a language-model head")


def experts(config: PreTrainedConfig) -> int:
    """How many experts a layer chooses from; 0 for a model that is no mixture of experts."""
    names, text = ("num_local_experts", "num_experts", "n_routed_experts"), text_config(config)
    return max(getattr(text, name, None) or 0 for name in names)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The layers of the text decoder inside any wrapper: its longest list of modules."""
    decoder = text_decoder(find_causal_lm(model))
    return max((m for m in decoder.modules() if isinstance(m, nn.ModuleList)), key=len)


def library_attention(model: PreTrainedModel) -> str:
    """The library's attention that the class supports, torch's kernels or plain products; or the chosen patterns'."""
    return patterned(model.config) or ("sdpa" if model._supports_sdpa else "eager")


def set_reading(model: nn.Module, attention: str) -> None:
    """Has `pair_logps` read a model through the library's attention as `model.attention` says: `library` or `masked`.

    Any other word is `library`, which is what a model reads by of which nothing has been said.
    """
    lm: Any = find_causal_lm(model)
    lm.align_reading = attention if attention in OF_LIBRARY else LIBRARY


def reading_of(model: PreTrainedModel) -> str:
    """What `set_reading` has said."""
    reading: str = getattr(model, "align_reading", LIBRARY)
    return reading


def takes_masks(model: PreTrainedModel) -> bool:
    """Whether its attention takes a mask of its tokens times themselves, as FlashAttention does not."""
    return current_attention(model) in ("sdpa", "eager")


@contextmanager
def attention_of(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Within it the attention of the model's text part is the implementation that transformers knows as `name`."""
    before = current_attention(model)
    set_attention(model, name)
    try:
        yield
    finally:
        set_attention(model, before)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within it no dropout; behind it every module trains again that did before."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
