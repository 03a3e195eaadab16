"""Which process of a sequence-parallel group owns which tokens of a row, and its shard of the row.

Two layouts for T tokens over n ranks:

- **contiguous** (for `ulysses`, where a rank attends with some heads over all tokens, so that ownership does
  not decide who works on attention): `T/n` tokens each, to within one.
- **balanced** (for `gather`, where a rank attends with its own queries): every prompt and every answer is cut
  into 2n consecutive chunks, and rank r takes the chunks r and 2n − 1 − r of each.

How unbalanced causal attention is, as the largest rank's work over the mean: with P keys before an answer of
length L (P = 0 for a prompt), token t works on P + t + 1 keys, so chunk j of 2n has the work
`c·(P + (j + ½)·c)` with `c = L/2n`, and the sum over chunks j and 2n − 1 − j is `c·(2P + L)` for every rank:
the balanced layout has ratio 1, span by span, but for rounding. Spans that 2n does not divide leave single
tokens over; they go to the ranks with the fewest tokens so far. Token counts then differ by at most one in
the whole row, and work from the mean by less than `3·(P + L)` a span: two chunks whose sizes are off by less
than one token of at most P + L keys each, and whose starts are off by at most n/2 tokens, which `L/2n` queries
each feel. Contiguous shards under `gather` would give the last rank `2 − 1/n` times the mean: it owns the n-th
of a prompt that sees the most keys.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from align.longseq.shared_prefix import Layout, SharedPrefixRow, Span

# For each rank the ascending, disjoint spans of the row that it owns.
Shards = tuple[tuple[Span, ...], ...]


def contiguous_shards(length: int, degree: int) -> Shards:
    """One span a rank, sizes within one token of each other; empty where the row is shorter than the degree."""
    bounds = [length * rank // degree for rank in range(degree + 1)]
    return tuple(((start, stop),) if start < stop else () for start, stop in pairwise(bounds))


def balanced_shards(layout: Layout, degree: int) -> Shards:
    """Chunks r and 2n − 1 − r of every prompt and answer: equal tokens and equal causal work for each rank."""
    shards: list[list[Span]] = [[] for _ in range(degree)]
    counts = [0] * degree
    for group in layout.groups:
        for start, stop in (group.prompt, *group.answers):
            sizes = _chunk_sizes(stop - start, counts)
            for chunk, size in enumerate(sizes):
                rank = _owner(chunk, degree)
                counts[rank] += size
                _append(shards[rank], (start, start + size))
                start += size
    return tuple(tuple(spans) for spans in shards)


def _owner(chunk: int, degree: int) -> int:
    return min(chunk, 2 * degree - 1 - chunk)


def _chunk_sizes(length: int, counts: list[int]) -> list[int]:
    """Sizes of 2n chunks; tokens that 2n leaves over go to the ranks with the smallest `counts`."""
    degree = len(counts)
    base, left = divmod(length, 2 * degree)
    sizes = [base] * (2 * degree)
    counts = list(counts)
    free = set(range(2 * degree))
    for _ in range(left):
        chunk = min(free, key=lambda chunk: (counts[_owner(chunk, degree)], chunk))
        free.remove(chunk)
        sizes[chunk] += 1
        counts[_owner(chunk, degree)] += 1
    return sizes


def _append(spans: list[Span], span: Span) -> None:
    """Adds a span; one that goes on where the last one ends makes it longer."""
    if span[0] == span[1]:
        return
    if spans and spans[-1][1] == span[0]:
        spans[-1] = (spans[-1][0], span[1])
    else:
        spans.append(span)


def count_tokens(spans: tuple[Span, ...]) -> int:
    """Tokens that a rank owns."""
    return sum(stop - start for start, stop in spans)


def token_index(spans: tuple[Span, ...], device: torch.device) -> Tensor:
    """`[t]` row indices of the tokens in `spans`, ascending."""
    parts = [torch.arange(start, stop, device=device) for start, stop in spans]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.long, device=device)


def shard_row(row: SharedPrefixRow, spans: tuple[Span, ...]) -> SharedPrefixRow:
    """The tokens of `row` in `spans`, and the scored triples whose source is among them.

    Labels were shifted in the whole row (`source` predicts `target`), so a target may lie in another shard.

    One token that nobody sees is put at the end. A shard is then never empty, which several libraries do
    not survive, and its position is the row's largest, so that RoPE variants that depend on the longest
    position (dynamic NTK, LongRoPE) choose the same frequencies in every shard.

    Args:
        row: the whole row, T tokens.
        spans: ascending, disjoint, t tokens in all.

    Returns:
        `input_ids`, `position_ids` `[1, t + 1]`; `source`, `context_source` index them. `layout`, `lengths`
        and `context_length` remain those of the whole row.
    """
    device = row.input_ids.device
    own = token_index(spans, device)
    place = torch.full((row.layout.length,), -1, device=device)
    place[own] = torch.arange(len(own), device=device)
    source, context_source = place[row.source], place[row.context_source]
    scored, in_context = source >= 0, context_source >= 0
    return replace(
        row,
        input_ids=torch.cat([row.input_ids[:, own], row.input_ids[:, :1]], dim=1),
        position_ids=torch.cat([row.position_ids[:, own], row.position_ids.amax(1, keepdim=True)], dim=1),
        source=source[scored],
        target=row.target[scored],
        answer=row.answer[scored],
        context_source=context_source[in_context],
        context_target=row.context_target[in_context],
        context_prompt=row.context_prompt[in_context],
    )
