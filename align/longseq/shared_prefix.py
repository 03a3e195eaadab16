"""A packed row: one prompt followed by its answers, several such prompts one after the other, no padding.

    | prompt 0 | chosen 0 | rejected 0,1 | rejected 0,2 | prompt 1 | chosen 1 | …

Every answer attends its prompt and itself, never a sibling or another prompt. An answer's first token is
predicted from the *prompt's* last hidden state, so scoring goes through an index and no token is doubled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from align.core.moved import renamed
from align.data.examples import TokenizedExample
from align.longseq.layout import Layout as Layout
from align.longseq.layout import PackedPrompt as PackedPrompt
from align.longseq.layout import Span as Span
from align.longseq.packing import context_triples, ids, packed_prompt, positions, predictions
from align.longseq.row_extras import row_columns, row_fronts, row_weights
from align.longseq.rows import SharedPrefixBatch as SharedPrefixBatch
from align.longseq.rows import SharedPrefixRow as SharedPrefixRow

if not TYPE_CHECKING:
    __getattr__ = partial(renamed, __name__)


def pack(
    examples: Sequence[TokenizedExample], *, tokens_per_row: int | None = None, fronts: bool = False
) -> SharedPrefixBatch:
    """Packs prompts with their answers into rows, in order, each row at most `tokens_per_row` tokens.

    Prompts that take 3,000, 4,000 and 2,000 tokens with their answers make rows of 7,000 and 2,000 with 8,192 a row.

    Args:
        examples: B ≥ 1 tokenised rows; their number of answers may differ.
        tokens_per_row: None packs everything into one row. An example that alone is longer than this
            gets a row of its own: it cannot be split.
        fronts: also say where each pair's answers are as long as the shorter one (`needs.fronts`).
    """
    if not examples:
        raise ValueError("pack needs at least one example")
    answers = max(len(example.answers) for example in examples)
    rows: list[list[TokenizedExample]] = [[]]
    used = 0
    for example in examples:
        if rows[-1] and tokens_per_row is not None and used + example.num_tokens > tokens_per_row:
            rows.append([])
            used = 0
        rows[-1].append(example)
        used += example.num_tokens
    weighted = any(answer.weights is not None for example in examples for answer in example.answers)
    packed = [_row(row, answers, weighted=weighted, fronts=fronts) for row in rows]
    return SharedPrefixBatch(tuple(packed)).flattened()


def empty_row(batch: SharedPrefixBatch) -> SharedPrefixRow:
    """A row of no prompts, one token long that scores nothing: what a process reads while others still have rows."""
    like = batch.rows[0]
    nothing = like.predictor[:0]
    return SharedPrefixRow(
        input_ids=like.input_ids[:, :1],
        position_ids=like.position_ids[:, :1],
        layout=Layout((PackedPrompt((0, 1), ()),)),
        predictor=nothing,
        target=nothing,
        answer=nothing,
        lengths=like.lengths[:0],
        context_predictor=nothing,
        context_target=nothing,
        context_prompt=nothing,
        context_length=nothing,
        columns=like.columns[:0],
        weight=nothing,
        weight_sum=like.weight_sum[:0],
        order=nothing,
        cuts=like.cuts[:0],
    )


def _row(
    examples: Sequence[TokenizedExample], answers: int, *, weighted: bool, fronts: bool
) -> SharedPrefixRow:
    """Lays out `examples` one after the other; `answers` = A of the whole batch."""
    prompts, offset = [], 0
    for example in examples:
        prompts.append(packed_prompt(example, offset))
        offset = prompts[-1].answers[-1][1]
    lengths = torch.zeros(len(examples), answers, dtype=torch.long)
    scored: list[tuple[Tensor, Tensor, Tensor]] = []
    context: list[tuple[Tensor, Tensor, Tensor]] = []
    for b, (example, packed) in enumerate(zip(examples, prompts, strict=True)):
        context.append(context_triples(example, packed, b))
        for j, (answer, span) in enumerate(zip(example.answers, packed.answers, strict=True)):
            predictor, target = predictions(answer.input_ids, answer.scored, span, packed.prompt[1] - 1)
            lengths[b, j] = len(target)
            scored.append((predictor, target, torch.full_like(predictor, b * answers + j)))
    predictor, target, answer_index = (torch.cat(parts) for parts in zip(*scored, strict=True))
    context_predictor, context_target, context_prompt = (
        torch.cat(parts) for parts in zip(*context, strict=True)
    )
    weight, weight_sum = row_weights(examples if weighted else (), lengths)
    order, cuts = row_fronts(lengths if fronts else lengths[:, :0])
    return SharedPrefixRow(
        input_ids=torch.cat([ids(example) for example in examples])[None],
        position_ids=torch.cat([positions(example) for example in examples])[None],
        layout=Layout(tuple(prompts)),
        predictor=predictor,
        target=target,
        answer=answer_index,
        lengths=lengths,
        context_predictor=context_predictor,
        context_target=context_target,
        context_prompt=context_prompt,
        context_length=torch.tensor([len(ids) for _, ids, _ in context]),
        columns=row_columns(examples, answers),
        weight=weight,
        weight_sum=weight_sum,
        order=order,
        cuts=cuts,
    )
