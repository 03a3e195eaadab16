"""Packed rows through the library's own attention, by a mask (`model.attention=masked`).

For models whose attention is code of their own, or that select keys by an index of their own (DeepSeek-V3.2, GLM-5):
a prompt is read once for all its answers, and a mask `[T, T]` of the row's T tokens says who sees whom, as the layout
has it: of a prompt of 10 tokens with answers of 4 and 3 the 17th sees 0 … 9 and 14 … 16. The model computes all T · T
scores, those that are masked too, so that this is slower and larger than the shared-prefix attention (attention.py),
and, where prompts are longer than their answers, faster than a row for each answer (own_rows.py). Prompts are read one
after the other, also where several are packed in a row.

Layers with a window get a mask of their own, by the kinds that `layer_types` of the configuration names. Layers that
keep a state run along prompt and answers apart (states.py). Log-probs are of the model's own logits (own_logits.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.core.errors import UserError
from align.data.examples import Answer, TokenizedExample
from align.longseq.calls import ModelCall, calls_of
from align.longseq.layer_pattern import (
    ATTENTION_TYPES,
    SELECTING,
    STATE_TYPES,
    TOKENWISE_TYPES,
)
from align.longseq.logps import Scores, target_logps
from align.longseq.own_logits import OwnRow, check_takes_mask, check_way, own_row_logps
from align.longseq.own_rows_probe import differ
from align.longseq.parallel import SequenceParallel
from align.longseq.settings import BY_ROWS
from align.longseq.shared_prefix import (
    Layout,
    PackedPrompt,
    SharedPrefixBatch,
    SharedPrefixRow,
    Span,
    empty_row,
    pack,
)
from align.longseq.states import called_for, prepare_states
from align.longseq.sums import sums_of_row
from align.models.settings import MASKED
from align.models.structure import evaluating
from align.models.text_part import current_attention, text_config
from align.patterns.native import native_patterns
from align.patterns.pattern import FULL, Pattern


def masked_totals(
    model: nn.Module,
    lm: PreTrainedModel,
    batch: SharedPrefixBatch,
    *,
    parallel: SequenceParallel | None,
    nll_scope: str,
    chunk_size: int,
    scores: Scores,
    routing: Any = None,
) -> Tensor:
    """`[B, K·A + 1]` sums over the answers' tokens and, last, over the context tokens that the NLL adds (sums.py).

    Args:
        model: as it is called.
        lm: the causal language model within it, with an attention of the library's.
        batch: B prompts with at most A answers each.
        parallel: None; a row is read by one process.
        nll_scope: as `pair_logps`, like the next two.
        chunk_size: tokens whose vocabulary logits exist at once.
        scores: what becomes of a slice's logits.
        routing: None; the library's routers are not watched here.

    Raises:
        UserError: a sequence-parallel group, a load-balancing loss, or a model that does not heed a mask.
    """
    check_way(lm, MASKED, parallel=parallel, routing=routing)
    check_takes_mask(lm)
    _check_apart(model, lm, batch.rows[0].input_ids.device)
    return _totals(model, lm, batch, nll_scope=nll_scope, chunk_size=chunk_size, scores=scores)


def row_masks(lm: PreTrainedModel, layout: Layout, device: torch.device) -> Any:
    """Who sees whom, as a model takes it: a mask `[1, 1, T, T]`, or a dictionary of them by kinds of layers.

    True, or 0, where a token is seen, as the model's attention takes masks.

    Args:
        lm: the causal language model.
        layout: of a packed row of T tokens.
        device: where the model is.

    Raises:
        UserError: a kind of layer that is not known here.
    """
    config = text_config(lm.config)
    if getattr(config, "layer_types", None) is None:
        return _mask(lm, layout, FULL, device)  # a window of another kind shows in the check at start
    kinds = _patterns(lm, config)
    masks = {one: _mask(lm, layout, one, device) for one in {*kinds.values(), FULL} if one is not None}
    by_kind = {kind: None if pattern is None else masks[pattern] for kind, pattern in kinds.items()}
    attending = {kind for kind, pattern in kinds.items() if pattern is not None}
    if len(kinds) == 1 and attending:
        return by_kind[attending.pop()]
    return {"full_attention": masks[FULL]} | by_kind


def _patterns(lm: PreTrainedModel, config: Any) -> dict[str, Pattern | None]:
    """The pattern of each kind of layer; None of one that does not attend."""
    kinds = dict(zip(config.layer_types, native_patterns(config), strict=True))
    known = ATTENTION_TYPES | STATE_TYPES | TOKENWISE_TYPES | SELECTING
    unknown = [kind for kind in kinds if kind not in known]
    if unknown:
        raise UserError(
            f"{type(lm).__name__} has layers of type {unknown[0]}, whose mask is not known: {BY_ROWS}."
        )
    return {kind: FULL if kind in SELECTING else pattern for kind, pattern in kinds.items()}


def _mask(lm: PreTrainedModel, layout: Layout, pattern: Pattern, device: torch.device) -> Tensor:
    """`[1, 1, T, T]`: booleans for torch's kernels, else what is added to scores, in the weights' precision."""
    seen = _seen(layout, pattern, device)[None, None]
    if current_attention(lm) == "sdpa":
        return seen
    dtype = next(weight.dtype for weight in lm.parameters() if weight.is_floating_point())
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)


def _seen(layout: Layout, pattern: Pattern, device: torch.device) -> Tensor:
    """`[T, T]` whether the row's token sees another, by the places that they have in a row of prompt and answer."""
    seen = torch.zeros(layout.length, layout.length, dtype=torch.bool, device=device)

    def places(span: Span, first: int) -> Tensor:
        return torch.arange(first, first + span[1] - span[0], device=device)

    for packed in layout.prompts:
        start, stop = packed.prompt
        prompt = places(packed.prompt, 0)
        seen[start:stop, start:stop] = pattern.sees(prompt[:, None], prompt[None])
        for first, last in packed.answers:
            answer = places((first, last), stop - start)
            seen[first:last, start:stop] = pattern.sees(answer[:, None], prompt[None])
            seen[first:last, first:last] = pattern.sees(answer[:, None], answer[None])
    return seen


# ---- rows


def _totals(
    model: nn.Module,
    lm: PreTrainedModel,
    batch: SharedPrefixBatch,
    *,
    nll_scope: str,
    chunk_size: int,
    scores: Scores = target_logps,
) -> Tensor:
    """The sums of every row, in step with the other processes' calls of the model."""
    prepare_states(lm)
    apart = SharedPrefixBatch(tuple(row for packed in batch.rows for row in _by_prompt(packed.host)))
    rows = apart.to(batch.rows[0].input_ids.device).rows
    calls = calls_of(model, rows, empty=empty_row(batch), nll_scope=nll_scope, chunk_size=chunk_size)
    return torch.cat([_row_sums(model, lm, call, scores) for call in calls])


def _by_prompt(row: SharedPrefixRow) -> Iterator[SharedPrefixRow]:
    """Each of a packed row's prompts in a row of its own; the row lies on the CPU."""
    answers, prompts = row.lengths.shape[1], range(len(row.lengths))
    scored, context = row.lengths.sum(1).tolist(), row.context_length.tolist()
    parts = [
        *(values.split(scored) for values in (row.predictor, row.target, row.answer)),
        *(values.split(context) for values in (row.context_predictor, row.context_target)),
    ]
    whole = [own.split(scored) if len(own) else [own] * len(prompts) for own in (row.weight, row.order)]
    for b, packed, predictor, target, answer, context_predictor, context_target, weight, order in zip(
        prompts, row.layout.prompts, *parts, *whole, strict=True
    ):
        start, stop = packed.prompt[0], packed.stop
        moved = [(first - start, last - start) for first, last in (packed.prompt, *packed.answers)]
        yield SharedPrefixRow(
            input_ids=row.input_ids[:, start:stop],
            position_ids=row.position_ids[:, start:stop],
            layout=Layout((PackedPrompt(moved[0], tuple(moved[1:])),)),
            predictor=predictor - start,
            target=target,
            answer=answer - b * answers,
            lengths=row.lengths[b : b + 1],
            context_predictor=context_predictor - start,
            context_target=context_target,
            context_prompt=torch.zeros_like(context_target),
            context_length=row.context_length[b : b + 1],
            columns=row.columns[b : b + 1],
            weight=weight,
            weight_sum=row.weight_sum[b : b + 1],
            order=order,
            cuts=row.cuts[b : b + 1],
        )


def _row_sums(model: nn.Module, lm: PreTrainedModel, call: ModelCall, scores: Scores) -> Tensor:
    """`[1, K·A + 1]` of one prompt."""
    row = call.row
    mask = row_masks(lm, row.layout, row.input_ids.device)
    scored = len(row.predictor)
    factors = row.predictor.new_empty(scored, 0)  # `sums_of_row` takes the row's own
    read = OwnRow(row.input_ids, row.position_ids, call.predictor, call.target, scored, 0, factors, mask)
    with called_for(call.layout):
        return sums_of_row(row, own_row_logps(model, lm, read, head_calls=call.head_calls, scores=scores))


# ---- whether a model heeds the mask

_apart: WeakSet[PreTrainedModel] = WeakSet()


def _check_apart(model: nn.Module, lm: PreTrainedModel, device: torch.device) -> None:
    """Refuses, before a model's first rows, one in which an answer sees its siblings: two rows that differ in one.

    All processes come here equally often, since each calls its models in the same order.
    """
    if lm in _apart:
        return
    with torch.no_grad(), evaluating(model):
        first, second = (
            _totals(model, lm, _tried(last).to(device), nll_scope="none", chunk_size=8)[0, 1]
            for last in (5, 6)
        )
    if differ(lm, first, second):
        raise UserError(
            f"{type(lm).__name__} does not heed the mask of a packed row: an answer's log-prob depends on its "
            f"sibling's: {BY_ROWS}."
        )
    _apart.add(lm)


def _tried(last: int) -> SharedPrefixBatch:
    """Two tokens of prompt with two answers of two, the first of which ends in `last`."""
    answers = (Answer(np.array([4, last]), np.ones(2, bool)), Answer(np.array([3, 2]), np.ones(2, bool)))
    return pack([TokenizedExample("probe:1", np.array([1, 2]), np.arange(2), answers)])
