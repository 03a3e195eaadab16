"""Shared-prefix attention behind transformers' AttentionInterface, under a name of its own.

A prompt's queries attend causally to the prompt. Answer i's queries attend to the whole prompt and causally
to answer i, which is a bottom-right-aligned causal mask over `prompt + answer i`. Nothing else is computed,
so siblings and other groups of the row cannot be seen.

The batch's layout reaches the function as the forward keyword `layout`; the mask interface under the same
name returns None, so that no library mask is built and a jump in `position_ids` (synthesised positions) is
not taken for a document boundary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from align.errors import UserError
from align.longseq.shared_prefix import Group, Layout

ATTENTION = "align_sdpa"

# Keywords that models hand to every attention function and that change nothing here.
_HARMLESS = {
    "position_ids",
    "position_embeddings",
    "output_attentions",
    "use_cache",
    "is_causal",
    "cache_position",
}


@dataclass(frozen=True)
class PreparedLayout(Layout):
    """A layout with the mask of each answer: made once a forward, used by every layer.

    Attributes:
        masks: for each group one `[n, P + n]` mask an answer, bottom-right-aligned causal
            (`is_causal=True` with fewer queries than keys would align it to the upper left).
    """

    masks: tuple[tuple[Tensor, ...], ...] = ()


def prepare(layout: Layout, device: torch.device) -> PreparedLayout:
    """The layout as the attention function takes it; masks cannot be made inside a checkpointed layer."""
    make = _causal_mask if device.type == "cpu" else causal_lower_right
    masks = tuple(
        tuple(
            make(stop - start, group.prompt[1] - group.prompt[0] + stop - start)
            for start, stop in group.answers
        )
        for group in layout.groups
    )
    return PreparedLayout(layout.groups, masks)


def _causal_mask(queries: int, keys: int) -> Tensor:
    """What `causal_lower_right` stands for, as a bool tensor: the CPU kernel would rebuild it at every call."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: PreparedLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over one row of shared prompts.

    Args:
        module: the attention layer, unused.
        query: `[1, H, T, D]`.
        key: `[1, H_kv, T, D]`, H a multiple of H_kv.
        value: `[1, H_kv, T, D]`.
        attention_mask: always None; the layout says who sees whom.
        layout: the row's spans and masks from `prepare`, required.
        scaling: factor on the scores; None is `D ** -0.5`.
        dropout: probability of dropping a weight.
        sliding_window: accepted where it covers the longest prompt + answer, which makes it void.

    Returns:
        `[1, T, H, D]` and None (no weights).

    Raises:
        UserError: the model asks for attention that this function does not compute.
    """
    if layout is None:
        raise ValueError(
            f"attention '{ATTENTION}' needs the keyword `layout`: call the model through pair_logps"
        )
    _refuse_unsupported(layout, sliding_window, kwargs)
    outputs = [
        output
        for group, masks in zip(layout.groups, layout.masks, strict=True)
        for output in _group_attention(query, key, value, group, masks, scaling=scaling, dropout=dropout)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _group_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: Group,
    masks: tuple[Tensor, ...],
    *,
    scaling: float | None,
    dropout: float,
) -> list[Tensor]:
    """`[1, H, n, D]` for the prompt and for each answer of one group, in row order."""
    shared: dict[str, Any] = {
        "scale": scaling,
        "dropout_p": dropout,
        "enable_gqa": query.shape[1] != key.shape[1],
    }
    start, stop = group.prompt
    prompt_key, prompt_value = key[:, :, start:stop], value[:, :, start:stop]
    outputs = [
        scaled_dot_product_attention(
            query[:, :, start:stop], prompt_key, prompt_value, is_causal=True, **shared
        )
    ]
    for (begin, end), mask in zip(group.answers, masks, strict=True):
        answer_key = torch.cat([prompt_key, key[:, :, begin:end]], dim=2)
        answer_value = torch.cat([prompt_value, value[:, :, begin:end]], dim=2)
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, begin:end], answer_key, answer_value, attn_mask=mask, **shared
            )
        )
    return outputs


def _refuse_unsupported(layout: Layout, sliding_window: int | None, extras: dict[str, Any]) -> None:
    """Refuses by name what would otherwise be silently ignored."""
    if sliding_window is not None and sliding_window < layout.longest_sequence:
        raise UserError(
            f"The model's sliding window of {sliding_window} tokens is shorter than a prompt with its answer "
            f"({layout.longest_sequence} tokens): set data.max_length={sliding_window} or use a model without it."
        )
    for name, value in extras.items():
        if value is not None and value is not False and name not in _HARMLESS:
            raise UserError(
                f"The model's attention asks for `{name}`, which the shared-prefix forward does not support."
            )


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The mask interface's entry: the layout takes the mask's place."""
    return


AttentionInterface.register(ATTENTION, shared_prefix_attention)
AttentionMaskInterface.register(ATTENTION, _no_mask)
