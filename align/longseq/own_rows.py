"""Rows of their own: each answer behind its whole prompt, through the library's attention (`model.attention=library`).

For models that cannot share a prompt: attention code of their own, soft caps, biases, layers that keep a state. A
prompt of 1,000 tokens with answers of 100 and 50 is read as two rows, of 1,100 and 1,050 tokens, where the shared
prefix reads one of 1,150. The model is called for one row at a time: nothing is padded, and no layer sees two rows at
once.

Log-probs are of the model's own logits. Its body runs over the row; what it does behind its body (the output embedding,
factors, soft caps) then runs on the hidden states that predict a scored token, a slice of them at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.distributed.agreement import agree_on_calls
from align.longseq.logps import Scores
from align.longseq.moving import as_bits, move_together
from align.longseq.own_logits import OwnRow, check_positions, check_way, own_row_sums
from align.longseq.own_rows_probe import check_causal
from align.longseq.parallel import SequenceParallel
from align.longseq.shared_prefix import SharedPrefixBatch, SharedPrefixRow
from align.longseq.sums import factors_of
from align.models.settings import LIBRARY


def own_rows(batch: SharedPrefixBatch, *, nll_scope: str = "none") -> list[OwnRow]:
    """Every answer of the batch behind its prompt, prompt by prompt; on the CPU.

    Args:
        batch: B prompts with at most A answers each.
        nll_scope: with `sequence` the chosen answer's row also predicts its context.
    """
    rows: list[OwnRow] = []
    first = 0  # of this packed row's prompts
    for row in batch.rows:
        rows += _unpacked(row.host, first, nll_scope)
        first += len(row.lengths)
    return rows


def own_row_tokens(batch: SharedPrefixBatch) -> int:
    """Tokens that the model reads of the batch as rows of their own: of a prompt of 10 with answers of 4 and 3 27."""
    return sum(
        packed.prompt[1] - packed.prompt[0] + stop - start
        for row in batch.rows
        for packed in row.layout.prompts
        for start, stop in packed.answers
    )


def own_totals(
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

    Where weights are gathered whenever a module is called (FSDP, ZeRO-3), all processes must call the model equally
    often: one with fewer rows reads a row of one token that scores nothing.

    Args:
        model: as it is called.
        lm: the causal language model within it, with an attention of the library's.
        batch: B prompts with at most A answers each.
        parallel: None; a row is read by one process.
        nll_scope: as `pair_logps`, like the next.
        chunk_size: tokens whose vocabulary logits exist at once.
        scores: what becomes of a slice's logits.
        routing: None; routers' decisions are taken in of packed rows alone.

    Raises:
        UserError: a sequence-parallel group, a load-balancing loss, or a model that cannot read rows of their own.
    """
    check_way(lm, LIBRARY, parallel=parallel, routing=routing)
    check_causal(model, lm, batch.rows[0].input_ids.device)
    rows = own_rows(batch, nll_scope=nll_scope)
    check_positions(lm, rows)
    prompts, answers = len(batch), batch.rows[0].lengths.shape[1]
    device = batch.rows[0].input_ids.device
    own = [(_head_calls(row, chunk_size),) for row in rows]
    agreed = agree_on_calls(model, own) or own
    rows += [_nothing(rows[0], slot=prompts * answers)] * (len(agreed) - len(rows))
    slots = torch.tensor([row.slot for row in rows])
    rows, slots = _moved(rows, slots, device)
    sums = torch.stack(
        [
            own_row_sums(model, lm, row, head_calls=calls, scores=scores)
            for row, (calls,) in zip(rows, agreed, strict=True)
        ]
    )
    # The last slot takes the rows that score nothing: their graph is kept, so that they take part in the backward pass.
    table = sums.new_zeros(prompts * answers + 1, sums.shape[1]).index_add(0, slots, sums)[:-1]
    table = table.view(prompts, answers, -1)
    return torch.cat([table[:, :, :-1].transpose(1, 2).flatten(1), table[:, :1, -1]], dim=1)


# ---- rows


def _unpacked(row: SharedPrefixRow, first: int, nll_scope: str) -> Iterator[OwnRow]:
    """The answers of one packed row, of which the first prompt is the batch's prompt number `first`."""
    answers = row.lengths.shape[1]
    sizes, context_sizes = row.lengths.flatten().tolist(), row.context_length.tolist()
    predictors, targets = row.predictor.split(sizes), row.target.split(sizes)
    factors = as_bits(factors_of(row)).split(sizes)
    context = list(
        zip(row.context_predictor.split(context_sizes), row.context_target.split(context_sizes), strict=True)
    )
    for b, packed in enumerate(row.layout.prompts):
        for j, answer in enumerate(packed.answers):
            predictor, target = predictors[b * answers + j], targets[b * answers + j]
            scored = len(target)
            if nll_scope == "sequence" and j == 0:
                predictor = torch.cat([predictor, context[b][0]])
                target = torch.cat([target, context[b][1]])
            start, stop = packed.prompt
            # From its place in the packed row to that in a row of prompt and answer.
            moved = predictor - torch.where(predictor < stop, start, answer[0] - (stop - start))
            ids, positions = (
                torch.cat([states[:, start:stop], states[:, answer[0] : answer[1]]], dim=1)
                for states in (row.input_ids, row.position_ids)
            )
            slot = b * answers + j
            yield OwnRow(ids, positions, moved, target, scored, first * answers + slot, factors[slot])


def _nothing(like: OwnRow, *, slot: int) -> OwnRow:
    """One token that scores nothing: what a process reads while others still have rows."""
    none = like.predictor[:0]
    ids, position = like.input_ids[:, :1], torch.zeros_like(like.position_ids[:, :1])
    return OwnRow(ids, position, none, none, 0, slot, like.factors[:0])


def _moved(rows: list[OwnRow], slots: Tensor, device: torch.device) -> tuple[list[OwnRow], Tensor]:
    """The same on `device`, in one copy."""
    names = ("input_ids", "position_ids", "predictor", "target", "factors")
    *moved, slots = move_together([*(getattr(row, name) for row in rows for name in names), slots], device)
    parts = zip(*[iter(moved)] * len(names), strict=True)
    return [
        replace(row, **dict(zip(names, own, strict=True))) for row, own in zip(rows, parts, strict=True)
    ], slots


def _head_calls(row: OwnRow, chunk_size: int) -> int:
    """2,500 tokens to score at 1,024 a time are 3 calls."""
    return max(1, math.ceil(len(row.target) / chunk_size))
