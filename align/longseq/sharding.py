"""Which process of a sequence-parallel group owns which tokens of a row, and its shard of the row.

Two layouts for T tokens over n ranks. With n = 2 and a prompt of 8 tokens (0 … 7) before one answer of 4 (8 … 11), of
which all are scored (predicted by 7 … 10), *even* gives rank 0 the tokens 0 … 3, 7, 8 and rank 1 the tokens 4 … 6, 9 …
11; *balanced* gives rank 0 the tokens 0, 1, 6, 7, 8, 11 and rank 1 the tokens 2 … 5, 9, 10:

- **even** (for `ulysses`, where a rank attends with some heads over all tokens, so that ownership does not decide
  who works on attention): an n-th of the tokens that predict a scored one, and an n-th of the others.
- **balanced** (for `gather`, where a rank attends with its own queries): every prompt and every answer is cut
  into 2n consecutive slices, and rank r takes the slices r and 2n − 1 − r of each.

How unbalanced they are, as the largest rank's share over the mean. Tokens, and with them what layers keep and the work
of everything but attention: counts differ by at most one in both layouts. Tokens through the head, whose vocabulary
logits are the largest tensors of short models: by at most one in the even layout (a prompt's last token predicts the
first of *every* answer, and counts once here), by at most one for each answer and prompt in the balanced one, where all
of an answer is scored. Consecutive n-ths of the row would give the last rank all answers, n times the mean.

Memory in attention: under `ulysses` all tokens of up to ⌈H/n⌉ of H heads, and of the KV heads that they read, so that
the ratio is that of the work; under `gather` keys and values of the whole row on every rank, n times a shard's.

Causal attention: in the even layout as `ulysses.share_heads` says. In the balanced one, with P keys before an
answer of length L (P = 0 for a prompt), token t works on P + t + 1 keys, so slice j of 2n has the work
`c·(P + (j + ½)·c)` with `c = L/2n`, and the sum over slices j and 2n − 1 − j is `c·(2P + L)` for every rank:
the balanced layout has ratio 1, span by span, but for rounding. Spans that 2n does not divide leave single
tokens over; they go to the ranks with the fewest tokens so far. Token counts then differ by at most one in
the whole row, and work from the mean by less than `3·(P + L)` a span: two slices whose sizes are off by less
than one token of at most P + L keys each, and whose starts are off by at most n/2 tokens, which `L/2n` queries
each feel. Consecutive n-ths under `gather` would give the last rank `2 − 1/n` times the mean: it owns the n-th
of a prompt that sees the most keys.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import pairwise

import torch
from torch import Tensor

from align.longseq.shared_prefix import Layout, SharedPrefixRow, Span

# For each rank the ascending, disjoint spans of the row that it owns.
Shards = tuple[tuple[Span, ...], ...]


def even_shards(length: int, predictor: Tensor, degree: int) -> Shards:
    """An n-th of the tokens that predict a scored one, and an n-th of the others, for each rank.

    Both are consecutive among their like: rank 0 has the first of each.

    Args:
        length: T, tokens of the row.
        predictor: `[S]` indices in `[0, T)` of the tokens that predict a scored one, on the CPU; they may repeat.
        degree: n, the ranks.

    Returns:
        Spans of each rank; counts of tokens, and of those in `predictor`, differ by at most one between ranks.
    """
    runs = _runs(length, predictor)
    spans: list[list[Span]] = [[] for _ in range(degree)]
    for scores in (False, True):
        alike = tuple(span for span, predicts in runs if predicts is scores)
        share, left = divmod(count_tokens(alike), degree)
        # Tokens left over go to the first ranks, of those that predict to the last: nobody gets two before all got one.
        first = degree - left if scores else 0
        _deal(alike, [share + (first <= rank < first + left) for rank in range(degree)], spans)
    return tuple(_joined(own) for own in spans)


def _runs(length: int, predictor: Tensor) -> list[tuple[Span, bool]]:
    """The row as the longest spans of tokens that all predict a scored one (True), or all do not (False).

    Of 6 tokens with the predictors 3 and 4: `((0, 3), False), ((3, 5), True), ((5, 6), False)`.
    """
    scores = torch.zeros(length, dtype=torch.bool)
    scores[predictor] = True
    cuts = [0, *((scores[1:] != scores[:-1]).nonzero().flatten() + 1).tolist(), length]
    return [((start, stop), bool(scores[start])) for start, stop in pairwise(cuts)]


def _deal(spans: tuple[Span, ...], sizes: list[int], shards: list[list[Span]]) -> None:
    """Hands the tokens of `spans` out in their order: the next `sizes[r]` of them are added to `shards[r]`.

    Spans `(0, 4), (6, 9)` in sizes 3 and 4: rank 0 is given `(0, 3)`, rank 1 `(3, 4)` and `(6, 9)`.
    """
    rest = deque(spans)
    for own, wanted in zip(shards, sizes, strict=True):
        while wanted:
            start, stop = rest.popleft()
            cut = min(stop, start + wanted)
            own.append((start, cut))
            wanted -= cut - start
            if cut < stop:
                rest.appendleft((cut, stop))


def _joined(spans: list[Span]) -> tuple[Span, ...]:
    """The same tokens in ascending order, spans that touch made one."""
    joined: list[Span] = []
    for span in sorted(spans):
        _append(joined, span)
    return tuple(joined)


def balanced_shards(layout: Layout, degree: int) -> Shards:
    """Slices r and 2n − 1 − r of every prompt and answer: equal tokens and equal causal work for each rank.

    A prompt of 8 tokens on two ranks: slices of 2, rank 0 takes 0, 1, 6, 7 and rank 1 takes 2 … 5.
    """
    shards: list[list[Span]] = [[] for _ in range(degree)]
    counts = [0] * degree
    for packed in layout.prompts:
        for start, stop in (packed.prompt, *packed.answers):
            sizes = _slice_sizes(stop - start, counts)
            for place, size in enumerate(sizes):
                rank = _owner(place, degree)
                counts[rank] += size
                _append(shards[rank], (start, start + size))
                start += size
    return tuple(tuple(spans) for spans in shards)


def _owner(place: int, degree: int) -> int:
    """The rank that takes slice `place` of 2n: of four slices on two ranks 0, 1, 1, 0."""
    return min(place, 2 * degree - 1 - place)


def _slice_sizes(length: int, counts: list[int]) -> list[int]:
    """Sizes of 2n slices; tokens that 2n leaves over go to the ranks with the smallest `counts` so far.

    10 tokens on two ranks that own 5 and 3 so far: 2, 3, 3, 2, since both that are left over go to rank 1.
    """
    degree = len(counts)
    base, left = divmod(length, 2 * degree)
    sizes = [base] * (2 * degree)
    counts = list(counts)
    free = [(counts[_owner(place, degree)], place) for place in range(2 * degree)]
    heapify(free)
    while left:
        known, place = heappop(free)
        rank = _owner(place, degree)
        if known < counts[rank]:  # its rank was given a token meanwhile, by its other slice
            heappush(free, (counts[rank], place))
            continue
        sizes[place] += 1
        counts[rank] += 1
        left -= 1
    return sizes


def _append(spans: list[Span], span: Span) -> None:
    """Adds a span; one that goes on where the last one ends makes it longer: (0, 3) and (3, 5) become (0, 5)."""
    if span[0] == span[1]:
        return
    if spans and spans[-1][1] == span[0]:
        spans[-1] = (spans[-1][0], span[1])
    else:
        spans.append(span)


def count_tokens(spans: tuple[Span, ...]) -> int:
    """Tokens that a rank owns."""
    return sum(stop - start for start, stop in spans)


def token_index(spans: tuple[Span, ...], device: torch.device | None = None) -> Tensor:
    """`[t]` row indices of the tokens in `spans`, ascending: of (0, 2) and (5, 7) they are 0, 1, 5, 6."""
    runs = [torch.arange(start, stop, device=device) for start, stop in spans]
    return torch.cat(runs) if runs else torch.empty(0, dtype=torch.long, device=device)


def shard_row(row: SharedPrefixRow, spans: tuple[Span, ...]) -> SharedPrefixRow:
    """The tokens of `row` in `spans`, and the scored triples whose predictor is among them.

    Labels were shifted in the whole row (`predictor` predicts `target`), so a target may lie in another shard.
    Where a shard owns the tokens 4 and 5 of a row, the predictor 5 becomes 1, its place in the shard.

    One token that nobody sees is put at the end. A shard is then never empty, which several libraries do
    not survive, and its position is the row's largest, so that RoPE variants that depend on the longest
    position (dynamic NTK, LongRoPE) choose the same frequencies in every shard.

    Args:
        row: the whole row, T tokens, on the CPU: what is picked out of it by conditions has a size that a device would
            have to be waited for.
        spans: ascending, disjoint, t tokens in all.

    Returns:
        `input_ids`, `position_ids` `[1, t + 1]`; `predictor`, `context_predictor` index them. `layout` and what there
        is one of for each prompt or answer (`lengths`, `context_length`, `columns`, …) remain those of the whole row.
    """
    own = token_index(spans)
    place = torch.full((row.layout.length,), -1)
    place[own] = torch.arange(len(own))
    predictor, context_predictor = place[row.predictor], place[row.context_predictor]
    scored, in_context = predictor >= 0, context_predictor >= 0
    return replace(
        row,
        input_ids=torch.cat([row.input_ids[:, own], row.input_ids[:, :1]], dim=1),
        position_ids=torch.cat([row.position_ids[:, own], row.position_ids.amax(1, keepdim=True)], dim=1),
        predictor=predictor[scored],
        target=row.target[scored],
        answer=row.answer[scored],
        context_predictor=context_predictor[in_context],
        context_target=row.context_target[in_context],
        context_prompt=row.context_prompt[in_context],
        weight=row.weight[scored] if len(row.weight) else row.weight,
        order=row.order[scored] if len(row.order) else row.order,
    )
