"""Shared-prefix attention behind transformers' AttentionInterface, under names of its own.

A prompt's queries attend causally to the prompt. Answer i's queries attend to the whole prompt and causally
to answer i. Nothing else is computed, so siblings and other prompts of the row cannot be seen. Of a prompt of 10 tokens
with answers of 4 and 3, the second answer's first token, at 14 of the row, attends to 0 … 9 and to itself.

The batch's layout reaches the function as the forward keyword `layout`; the mask interface under the same
name returns None, so that no library mask is built and a jump in `position_ids` (synthesised positions) is
not taken for a document boundary.

One process and sequence parallelism share `attend`: it takes any ascending subset of the row's queries, cut
into pieces that each lie within one prompt or answer. One process owns every piece whole.

There are two ways to the same result. `attend` reads keys and values where they lie and needs no mask
(merge.py). `attend_plain` copies the prompt's keys and values for every answer but the first and masks; it is
what `attend` is tested against, and what takes over where no kernel gives its log-sum-exp: with dropout, and
on devices other than CPU and CUDA.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from align.core.errors import UserError
from align.longseq.kernels import sdpa_kernel
from align.longseq.merge import MergedAttention
from align.longseq.prepared import Attend as Attend
from align.longseq.prepared import PreparedLayout as PreparedLayout
from align.longseq.prepared import prepare as prepare
from align.longseq.settings import ATTENTION as ATTENTION
from align.longseq.settings import ATTENTIONS as ATTENTIONS

# Keywords that models hand to every attention function and that change nothing here.
_HARMLESS = {
    "position_ids",
    "position_embeddings",
    "output_attentions",
    "use_cache",
    "is_causal",
    "cache_position",
    "routing",  # of balance.py, for routers
}


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: PreparedLayout,
    kernel: str,
    scaling: float | None = None,
) -> Tensor:
    """Attention of some of a row's queries to all of its keys, without copies and without masks.

    Args:
        query: `[1, h, Q, D]`, the queries that `layout` was prepared for, in row order.
        key: `[1, k, T, D]`, h a multiple of k.
        value: `[1, k, T, D]`.
        layout: which queries attend which keys.
        kernel: its name in kernels.py.
        scaling: factor on the scores; None is `D ** -0.5`.

    Returns:
        `[1, h, Q, D]`.
    """
    if not layout.parts:
        return _nothing(query, key, value)
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    output: Tensor = MergedAttention.apply(query, key, value, layout.parts, factor, kernel)
    return output


def attend_plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: PreparedLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The same by `scaled_dot_product_attention` alone: copies and masks, and any device and dropout.

    Args:
        query: `[1, h, Q, D]`, the queries that `layout` was prepared for, in row order.
        key: `[1, k, T, D]`, h a multiple of k.
        value: `[1, k, T, E]`.
        layout: which queries attend which keys.
        scaling: factor on the scores; None is `D ** -0.5`.
        dropout: probability of dropping a weight.

    Returns:
        `[1, h, Q, E]`.
    """
    outputs = []
    for branch in layout.branches:
        branch_key, branch_value = (
            torch.cat([states[:, :, start:stop] for start, stop in branch.keys], dim=2)
            for states in (key, value)
        )
        for piece in branch.pieces:
            start, stop = piece.queries
            # `is_causal` with fewer queries than keys would align the mask to the upper left.
            square = stop - start == piece.keys
            outputs.append(
                scaled_dot_product_attention(
                    query[:, :, start:stop],
                    branch_key[:, :, : piece.keys],
                    branch_value[:, :, : piece.keys],
                    attn_mask=None if square else _lower_right(stop - start, piece.keys, query.device),
                    is_causal=square,
                    scale=scaling,
                    dropout_p=dropout,
                    enable_gqa=query.shape[1] != key.shape[1],
                )
            )
    return torch.cat(outputs, dim=2) if outputs else _nothing(query, key, value)


def _lower_right(queries: int, keys: int, device: torch.device) -> Tensor:
    """`[queries, keys]` causal mask aligned to the lower right: of 2 queries and 5 keys they see 4 and 5."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _nothing(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`[1, h, 0, D]` of no queries, whose graph holds keys and values: others wait for their gradient."""
    return query[:, :, :0] + key[:, :, :0].sum() + value[:, :, :0].sum()


def _lower_precision(states: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in autocast's precision, as it would hand them to torch's own function."""
    device = states[0].device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return states
    query, key, value = (one.to(torch.get_autocast_dtype(device)) for one in states)
    return query, key, value


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
    flash: str | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over one row of shared prompts, or over this process's shard of it (T tokens here).

    Args:
        module: the attention layer.
        query: `[1, H, T, D]`.
        key: `[1, H_kv, T, D]`, H a multiple of H_kv.
        value: `[1, H_kv, T, D]`.
        attention_mask: None, since the layout takes its place; a model that brings a mask of its own is refused.
        layout: who sees whom, from `prepare`, required.
        scaling: factor on the scores; None is `D ** -0.5`.
        dropout: probability of dropping a weight.
        sliding_window: accepted where it covers the longest prompt + answer, which makes it void.
        flash: `flash2` or `flash3`; None takes torch's kernels.

    Returns:
        `[1, T, H, D]` and None (no weights).

    Raises:
        UserError: the model asks for attention that this function does not compute.
    """
    if layout is None:
        raise UserError(
            f"{type(module).__name__} was not handed the row's layout: either the model does not pass forward "
            "keywords on to its attention, and is not supported, or it was called other than through pair_logps."
        )
    _refuse_unsupported(layout, sliding_window, {"attention_mask": attention_mask, **kwargs})
    layout.callers.add(module)
    query, key, value = _lower_precision((query, key, value))
    kernel = None if dropout else flash or sdpa_kernel(query, value)
    if kernel is None:
        here: Attend = partial(attend_plain, layout=layout, scaling=scaling, dropout=dropout)
    else:
        here = partial(attend, layout=layout, scaling=scaling, kernel=kernel)
    return layout.exchange(query, key, value, here).transpose(1, 2), None


def _refuse_unsupported(layout: PreparedLayout, sliding_window: int | None, extras: dict[str, Any]) -> None:
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


for _choice, _name in ATTENTIONS.items():
    _flash = None if _choice == "sdpa" else _choice
    AttentionInterface.register(_name, partial(shared_prefix_attention, flash=_flash))
    AttentionMaskInterface.register(_name, _no_mask)
