"""A small random model of an architecture, its weights drawn wide, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import set_zero3_state

from align.models.small import small
from align.models.soft_prompt import PromptRows, add_soft_prompt
from align.models.text_part import freeze_other_parts


def build_small(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    *,
    dtype: torch.dtype = torch.float64,
    keep: tuple[str, ...] = (),
) -> PreTrainedModel:
    """A model of the class, small in everything (models/small.py), with the same weights every time; it trains.

    Args:
        model_class: the model's class.
        config: the user's configuration, or the class's own.
        dtype: of all weights.
        keep: names of sizes that are left as they are.
    """
    build: Any = (
        model_class  # the class itself: under ZeRO-3 the library's `from_config` would scatter the weights
    )
    with torch.random.fork_rng(devices=[]), default_dtype(dtype), set_zero3_state():
        torch.manual_seed(0)
        model = build(small(config, keep=keep))
        draw_wide(model)
    model.to(dtype)
    freeze_other_parts(model)
    return model.train()  # type: ignore[no-any-return]


def draw_wide(model: nn.Module) -> None:
    """Weights far wider than a fresh checkpoint's, and none that is 0: an error in a mask or a position shows.

    Matrices get entries of 1.6 / √width, vectors (norms, biases, sinks) keep theirs with a tenth of noise.
    """
    with torch.no_grad():
        for weight in model.parameters():
            if weight.is_floating_point():
                if weight.ndim > 1:
                    weight.normal_(std=1.6 / weight.shape[-1] ** 0.5)
                else:
                    weight.add_(torch.randn_like(weight), alpha=0.1)


def draw_adapter(model: nn.Module) -> None:
    """Noise on what an adapter trains, which does nothing at its start, and no dropout in it."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for weight in model.parameters():
            if weight.requires_grad and weight.is_floating_point():
                weight.add_(torch.randn_like(weight), alpha=0.1)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def behind_prompt(model: PreTrainedModel, tokens: int) -> PreTrainedModel:
    """The model with a soft prompt of so many tokens, in place; as it is where there are none."""
    if tokens:
        weight: Any = model.get_input_embeddings().weight
        width = weight.shape[1]
        rows = torch.linspace(-1.0, 1.0, tokens * width).view(tokens, width).to(weight)
        add_soft_prompt(model, PromptRows(rows, trains=True))
    return model


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Within it weights are made in `dtype`."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
