"""Shared-prefix attention behind transformers' AttentionInterface, under names of its own.

A prompt's queries attend causally to the prompt. Answer i's queries attend to the whole prompt and causally
to answer i. Nothing else is computed, so siblings and other prompts of the row cannot be seen. Of a prompt of 10 tokens
with answers of 4 and 3, the second answer's first token, at 14 of the row, attends to 0 … 9 and to itself.

The batch's layout reaches the function as the forward keyword `layout`. The mask interface has no entry under the same
name, so that the library builds no mask and does not look for jumps in `position_ids` (synthesised positions), which it
would take for document boundaries, and for which it would wait for a GPU in every forward.

One process and sequence parallelism share `attend`: it takes any ascending subset of the row's queries, cut
into pieces that each lie within one prompt or answer. One process owns every piece whole.

Layers that see less than everything before (a window, chunks) have a pattern (patterns/pattern.py), which a layer's own
configuration names (layer_pattern.py). Learned sinks join the softmax; values narrower than keys are padded with zeros.

There are two ways to the same result. `attend` reads keys and values where they lie and needs no mask
(merge.py). `attend_plain` (plain_attention.py) copies and masks; it is what `attend` is tested against, and what takes
over where no kernel gives its log-sum-exp: with dropout, and on devices other than CPU and CUDA.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface, PreTrainedModel

from align.core.errors import UserError
from align.longseq.choice import CHOOSERS, Chooser, best_kernel
from align.longseq.keep_attention import operators_kept
from align.longseq.kernels import kernel_named
from align.longseq.layer_pattern import UNSAID, Unsaid, layer_pattern
from align.longseq.merge import MergedAttention
from align.longseq.plain_attention import attend_plain as attend_plain
from align.longseq.plain_attention import nothing, of_heads
from align.longseq.prepared import Attend as Attend
from align.longseq.prepared import PreparedLayout as PreparedLayout
from align.longseq.prepared import local
from align.longseq.prepared import prepare as prepare
from align.longseq.settings import ATTENTION as ATTENTION
from align.longseq.settings import ATTENTIONS as ATTENTIONS
from align.longseq.settings import cannot_share
from align.longseq.shared_prefix import Span
from align.models.scaled_attention import scaled_query
from align.models.text_part import current_attention
from align.patterns.by_head import ByHead
from align.patterns.pattern import FULL, Pattern

# Keywords that models hand to every attention function and that change nothing here.
HARMLESS = {
    "position_ids",
    "position_embeddings",
    "output_attentions",
    "use_cache",
    "is_causal",
    "cache_position",
    "logits_to_keep",  # some composites hand it down to their text part
    "routing",  # of balance.py, for routers
}


def is_ours(model: PreTrainedModel) -> bool:
    """Whether the attention of a model's text part is one of these."""
    return current_attention(model) in ATTENTIONS.values()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    layout: PreparedLayout,
    kernel: str,
    pattern: Pattern | ByHead = FULL,
    sinks: Tensor | None = None,
    heads: Span | None = None,
    scaling: float | None = None,
) -> Tensor:
    """Attention of some of a row's queries to all of its keys, without masks.

    Args:
        query: `[1, h, Q, D]`, the queries that `layout` was prepared for, in row order.
        key: `[1, k, T, D]`, h a multiple of k.
        value: `[1, k, T, E]`; E is D but for kernels that take narrower values.
        layout: the row, and which of its queries these are.
        kernel: its name in kernels.py.
        pattern: which of the tokens before it a token of a branch sees, in all heads or run by run.
        sinks: `[H]` of the layer's heads, a logit each that joins the softmax; None is none.
        heads: which of the layer's H query heads these are; None is all.
        scaling: factor on the scores; None is `D ** -0.5`.

    Returns:
        `[1, h, Q, E]`.
    """
    parts = layout.parts(pattern, heads or (0, query.shape[1]))
    if not parts:
        return nothing(query, key, value, sinks)
    factor = query.shape[3] ** -0.5 if scaling is None else scaling
    own_sinks = of_heads(sinks, heads)
    output: Tensor = MergedAttention.apply(query, key, value, own_sinks, parts, factor, kernel)
    return output


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
    sliding_window: int | Unsaid | None = UNSAID,
    s_aux: Tensor | None = None,
    softcap: float | None = None,
    chooser: Chooser = best_kernel,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over one row of shared prompts, or over this process's shard of it (T tokens here).

    Args:
        module: the attention layer.
        query: `[1, H, T, D]`.
        key: `[1, H_kv, T, D]`, H a multiple of H_kv.
        value: `[1, H_kv, T, E]`, E of its own in latent attention (MLA).
        attention_mask: None, since the layout takes its place; a model that brings a mask of its own is refused.
        layout: who sees whom, from `prepare`, required.
        scaling: factor on the scores; None is `D ** -0.5`.
        dropout: probability of dropping a weight.
        sliding_window: tokens that a token sees, itself included, in layers that have a window; see layer_pattern.py.
        s_aux: `[H]` sinks: a logit for each head that joins the softmax and has no value.
        softcap: c of scores `c · tanh(s / c)`.
        chooser: names the kernel; see choice.py.

    Returns:
        `[1, T, H, E]` and None (no weights).

    Raises:
        UserError: the model asks for attention that this function does not compute.
    """
    if layout is None:
        raise _no_layout(module)
    _refuse_unsupported({"attention_mask": attention_mask, **kwargs}, both=bool(softcap and dropout))
    layout.callers.add(module)
    query, key, value = _lower_precision((scaled_query(module, query, layout.positions), key, value))
    asked: dict[str, Any] = {
        "layout": layout,
        "pattern": layer_pattern(
            module, sliding_window, layout.longest_sequence, query.shape[1], key.shape[1]
        ),
        "sinks": s_aux,
        "scaling": query.shape[3] ** -0.5 if scaling is None else scaling,
    }
    query, key = (_at_least(states, value.shape[3]) for states in (query, key))
    kernel = None if dropout else chooser(query, value, softcap)
    if kernel is None:
        attended = _reached(layout, query, key, value, partial(_plainly, **asked, dropout=dropout))
    else:
        here = partial(attend, **asked, kernel=kernel)
        attended = _reached(layout, query, key, value, here, unlike=kernel_named(kernel).unlike)
    return attended.transpose(1, 2).contiguous(), None  # some models view it (JetMoe)


def _plainly(query: Tensor, key: Tensor, value: Tensor, **asked: Any) -> Tensor:
    """`attend_plain`, whose operators checkpointing may keep."""
    with operators_kept():
        return attend_plain(query, key, value, **asked)


def _reached(
    layout: PreparedLayout, query: Tensor, key: Tensor, value: Tensor, attend: Attend, *, unlike: bool = False
) -> Tensor:
    """Attention with keys and values from wherever they are; `unlike` says that it takes values narrower than keys."""
    width = value.shape[3]
    if unlike and layout.exchange is local:
        return attend(query, key, value)
    way = _narrowed(attend, width) if unlike else attend
    return layout.exchange(query, key, _at_least(value, query.shape[3]), way)[..., :width]


def _at_least(states: Tensor, width: int) -> Tensor:
    """Zeros behind what is narrower, which change no score and no output that was there."""
    missing = width - states.shape[3]
    return pad(states, (0, missing)) if missing > 0 else states


def _narrowed(attend: Attend, width: int) -> Attend:
    """Attention whose values come and whose output goes with zeros behind their `width`, as exchanges send them."""

    def narrowed(query: Tensor, key: Tensor, value: Tensor, *, heads: Span | None = None) -> Tensor:
        return _at_least(attend(query, key, value[..., :width], heads=heads), value.shape[3])

    return narrowed


def _no_layout(module: nn.Module) -> UserError:
    return cannot_share(
        f"{type(module).__name__} was not handed the row's layout: either the model does not pass forward "
        "keywords on to its attention, and cannot share a prompt, or it was called other than through pair_logps"
    )


def _refuse_unsupported(extras: dict[str, Any], *, both: bool) -> None:
    """Refuses by name what would otherwise be silently ignored; `both`: soft-capped scores and dropout."""
    if both:
        raise cannot_share("The model's attention asks for soft-capped scores and for dropout at once")
    for name, value in extras.items():
        if value is not None and value is not False and name not in HARMLESS:
            raise cannot_share(
                f"The model's attention asks for `{name}`, which the shared-prefix forward does not support"
            )


for _choice, _name in ATTENTIONS.items():
    AttentionInterface.register(_name, partial(shared_prefix_attention, chooser=CHOOSERS[_choice]))
