"""Queries multiplied by what the model's configuration says of their positions, in every attention.

The factor is computed in float32 or more and multiplied in that precision, so that bfloat16 is rounded once. It
reaches a query behind its rotary embedding and before anything else: soft caps and sinks meet scaled scores. Keys,
values and what is kept of them in generation are untouched.

The shared prefix's attention and that of common prefixes call `scaled_query` themselves. The library's own two, torch's
kernels and plain products, have a form each here that scales and then calls it, under names of ours in transformers'
AttentionInterface; `text_part.set_attention` takes them where the configuration has a scale. Positions come by the
keyword that the library's layers hand on.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from align.core.errors import UserError
from align.models.text_part import SCALED
from align.query_scale.scale import KEY, STORED, built


def scaled_query(module: nn.Module, query: Tensor, positions: Tensor | None) -> Tensor:
    """The queries of one layer, scaled; as they came where the model has no scale, or leaves this layer alone.

    Args:
        module: the attention layer.
        query: `[B, H, T, D]`, with its rotary embedding.
        positions: `[B, T]` or `[1, T]`; of several kinds of positions for each token (`[3, B, T]`, in composites) the
            first is taken, which is text's.

    Raises:
        UserError: a layer that does not say which it is, or whose model gives its attention no positions.
    """
    stored = getattr(getattr(module, "config", None), STORED, None)
    if stored is None:
        return query
    layer = getattr(module, "layer_idx", None)
    if layer is None or positions is None:
        lacking = "number of the layer" if layer is None else "positions"
        raise UserError(
            f"{KEY}: {type(module).__name__} gives its attention no {lacking}, by which queries are scaled: use "
            "another model."
        )
    precision = torch.promote_types(query.dtype, torch.float32)
    own = positions[0] if positions.dim() > 2 else positions
    scale = built(stored).scale(own.to(precision), layer)
    return query if scale is None else (query * scale[:, None, :, None]).to(query.dtype)


def _by_kernels(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The library's `sdpa` of scaled queries; `[B, H, T, D]` and so on, as transformers calls it."""
    scaled = scaled_query(module, query, position_ids)
    return sdpa_attention_forward(
        module, scaled, key, value, attention_mask, position_ids=position_ids, **kwargs
    )


def _by_products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The library's `eager` of scaled queries: the function that the layer's own forward would have called."""
    names = inspect.unwrap(type(module).forward).__globals__
    if "eager_attention_forward" not in names:
        raise UserError(
            f"{KEY}: {type(module).__name__} computes attention by plain products of its own, whose queries cannot be "
            "scaled: use another model."
        )
    scaled = scaled_query(module, query, position_ids)
    attended: tuple[Tensor, Tensor | None] = names["eager_attention_forward"](
        module, scaled, key, value, attention_mask, position_ids=position_ids, **kwargs
    )
    return attended


for _own, _scaled, _mask in (("sdpa", _by_kernels, sdpa_mask), ("eager", _by_products, eager_mask)):
    AttentionInterface.register(SCALED[_own], _scaled)
    AttentionMaskInterface.register(SCALED[_own], _mask)
