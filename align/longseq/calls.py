"""A forward's calls of the model, one a row, in step with the other processes' calls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from align.distributed.agreement import SameRows, agree_on_calls
from align.longseq.parallel import SequenceParallel, place_row
from align.longseq.prepared import PreparedLayout
from align.longseq.shared_prefix import SharedPrefixRow
from align.longseq.states import count_spans, state_mixers


@dataclass(frozen=True)
class ModelCall:
    """One call of the model.

    Attributes:
        row: what it reads: a whole row, or this process's shard of one.
        layout: who sees whom in it.
        predictor: `[S]` places in `row` of the hidden states that go through the head.
        target: `[S]` the token ids that they predict.
        head_calls: in how many slices they go through the head.
    """

    row: SharedPrefixRow
    layout: PreparedLayout
    predictor: Tensor
    target: Tensor
    head_calls: int


def calls_of(
    model: nn.Module,
    rows: Sequence[SharedPrefixRow],
    *,
    empty: SharedPrefixRow,
    parallel: SequenceParallel | None = None,
    same: SameRows | None = None,
    nll_scope: str,
    chunk_size: int,
) -> list[ModelCall]:
    """This process's calls of the model, in step with the other processes' calls.

    Where weights are gathered whenever a module is called (FSDP, ZeRO-3), all processes must call the model, and
    within a call its head and the tiles of its layers, equally often. So a process with rows of 3 and 2 head calls
    beside one with a single row of 4 makes two calls of 4 and 2; the other one reads an empty second row and calls
    the head for it twice, with nothing to score.

    Args:
        model: as it is called.
        rows: what this process reads, at least one.
        empty: what it reads while others still have rows.
        parallel: its place in the group that shares every row.
        same: what it has to have in common with that group.
        nll_scope: as `pair_logps`, like the next.
        chunk_size: tokens whose vocabulary logits exist at once.

    Raises:
        UserError: the ranks of the group came with different rows.
    """
    calls = [_call(row, parallel, nll_scope, chunk_size) for row in rows]
    own = [(call.head_calls, call.row.input_ids.shape[1], count_spans(call.layout)) for call in calls]
    agreed = agree_on_calls(model, own, same=same)
    missing = len(agreed or own) - len(calls)
    calls += [_call(empty, parallel, nll_scope, chunk_size) for _ in range(missing)]
    mixers = agreed is not None and bool(state_mixers(model))
    # Layers are cut into as many tiles as the longest row of any process needs.
    return [
        replace(
            call,
            head_calls=slices,
            layout=replace(call.layout, most_tokens=tokens, most_spans=spans if mixers else None),
        )
        for call, (slices, tokens, spans) in zip(calls, agreed or own, strict=True)
    ]


def _call(
    row: SharedPrefixRow, parallel: SequenceParallel | None, nll_scope: str, chunk_size: int
) -> ModelCall:
    """The call that one row takes by itself: 2,500 tokens to score at 1,024 a time are 3 calls of the head."""
    own, layout = place_row(row, parallel)
    predictor, target = own.scored_tokens(nll_scope)
    return ModelCall(own, layout, predictor, target, max(1, math.ceil(len(target) / chunk_size)))
