"""LM-Infinite's distance limit (arXiv 2308.16137): first tokens outside the window are read as if they stood nearer.

A model that has never seen a distance of 100,000 positions reads a first token there at a distance that it knows: the
query is turned to `limit`, the key to 0, and both groups of keys share one softmax. Rotations add up, so that what the
rotary embedding has turned already is turned on: a query at p by limit − p, a key at p by −p. The model's own embedding
and its own function do it, so that every kind of frequencies and every order of the dimensions is as the model has it.

In evaluation alone, for answers and perplexity, by attention with masks (patterned_attention.py): no row that trains is
longer than its window for long.
"""

from __future__ import annotations

import sys
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from align.core.errors import UserError
from align.models.text_part import text_config, text_decoder
from align.patterns.layers import limit_of

APPLY = "apply_rotary_pos_emb"  # as the library's modules call the function that turns queries and keys
_ROTARY: WeakKeyDictionary[nn.Module, nn.Module] = (
    WeakKeyDictionary()
)  # attention layer -> its model's embedding


def check_limit(config: PreTrainedConfig, model_class: type[PreTrainedModel] | None) -> None:
    """Refuses the limit for a model whose rotary embedding cannot be asked, before its weights are read.

    Raises:
        UserError: which class.
    """
    if limit_of(text_config(config)) is None:
        return
    if model_class is None or not hasattr(sys.modules[model_class.__module__], APPLY):
        name = config.model_type if model_class is None else model_class.__name__
        raise UserError(
            f"attention.limit: {name} has no rotary embedding that could be turned on: set it to null."
        )


def note_rotary(model: PreTrainedModel) -> None:
    """Remembers which rotary embedding the layers of a model with a limit have.

    Raises:
        UserError: an embedding that does not turn whole heads back and forth.
    """
    if limit_of(text_config(model.config)) is None:
        return
    decoder = text_decoder(model)
    rotary = getattr(decoder, "rotary_emb", None)
    layers = [module for module in decoder.modules() if hasattr(module, "layer_idx")]
    if rotary is None or not layers or not _turns_back(rotary, layers[0]):
        raise UserError(
            f"attention.limit: the rotary embedding of {type(model).__name__} cannot be turned on: set it to null."
        )
    _ROTARY.update(dict.fromkeys(layers, rotary))


def _turns_back(rotary: nn.Module, layer: nn.Module) -> bool:
    """Whether turning a head on by 7 positions and back gives it back, and by 7 alone does not."""
    config: Any = layer.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    device = next(iter(rotary.buffers())).device
    heads = torch.linspace(-1, 1, 2 * width, device=device).view(1, 1, 2, width)
    by = torch.tensor([[7, 7]], device=device)
    try:
        there = _turned(rotary, layer, heads, by)
        back = _turned(rotary, layer, there, -by)
    except (RuntimeError, TypeError, ValueError):
        return False
    return bool(torch.allclose(back, heads, atol=1e-4)) and not torch.allclose(there, heads, atol=1e-2)


def _turned(rotary: nn.Module, layer: nn.Module, states: Tensor, by: Tensor) -> Tensor:
    """`[n, H, q, D]` turned on by `by` `[n or 1, q]` positions, which may be below 0."""
    apply: Any = getattr(sys.modules[type(layer).__module__], APPLY)
    cos, sin = rotary(states, by)
    scale = float(getattr(rotary, "attention_scaling", 1.0))  # is in the states already
    turned: Tensor = apply(states, states, cos / scale, sin / scale)[0]
    return turned


def limited(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    near: Tensor,
    far: Tensor,
    places: tuple[Tensor, Tensor],
    limit: int,
    scaling: float,
) -> Tensor:
    """Attention to keys in the window at their distance, and to first tokens outside it at `limit`, in one softmax.

    Args:
        module: the attention layer, noted by `note_rotary`.
        query: `[n, H, q, D]`, rotated.
        key: `[n, K, L, D]`, rotated, H a multiple of K.
        value: `[n, K, L, E]`.
        near: `[n, H, q, L]`, true for keys that are seen within the window.
        far: the same for those outside it.
        places: `[n or 1, q]` and `[n or 1, L]` places of queries and keys in their rows.
        limit: positions.
        scaling: factor on the scores.

    Returns:
        `[n, H, q, E]`.
    """
    shared, rotary = query.shape[1] // key.shape[1], _ROTARY[module]
    own, of_keys = places
    first = far.any(dim=(0, 1, 2)).nonzero().flatten()  # columns that any query sees from outside its window
    nearer = _turned(rotary, module, query, limit - own)
    start = _turned(rotary, module, key[:, :, first], -of_keys[:, first])
    key, value, start = (one.repeat_interleave(shared, dim=1) for one in (key, value, start))
    scores = torch.cat(
        [
            (query @ key.transpose(2, 3) * scaling).masked_fill(~near, -torch.inf),
            (nearer @ start.transpose(2, 3) * scaling).masked_fill(~far[..., first], -torch.inf),
        ],
        dim=3,
    )
    weights = scores.softmax(3, dtype=torch.promote_types(scores.dtype, torch.float32)).to(value.dtype)
    return weights @ torch.cat([value, value[:, :, first]], dim=2)
