"""Which calls are computed together: a pure function of the calls, so that a restart computes the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.generation.prefixes import Family

if TYPE_CHECKING:
    from align.generation.generators import Request


def fixed_batches(
    requests: Sequence[Request],
    lengths: Sequence[int],
    families: Sequence[Family],
    *,
    batch_tokens: int,
    batch_size: int,
) -> list[list[Family]]:
    """The families of each batch: like lengths together, the longest first; a family too large is split.

    Requests of one batch share their sampling, and their prompts are either all read after a beginning or
    all without one. A request over the budget has a batch of its own.

    Args:
        requests: all requests of a stage.
        lengths: `[len(requests)]` their prompts' tokens.
        families: every request in one.
        batch_tokens: most of (longest rest + new tokens) × rows, and the beginnings once each.
        batch_size: most rows.
    """

    def key(family: Family) -> tuple[str, bool, int, str]:
        first = family.members[0]
        longest = max(lengths[i] for i in family.members)
        return (repr(requests[first].sampling), family.shared > 0, -longest, requests[first].id)

    batches: list[list[Family]] = []
    group: tuple[str, bool] | None = None
    rows = begun = rest = 0  # of the last batch; `begun`: tokens of all its beginnings
    for family in sorted(families, key=key):
        sampling = requests[family.members[0]].sampling
        if group != key(family)[:2]:
            group, rows = key(family)[:2], 0
        here = False  # whether the last batch has this family's beginning
        for i in family.members:
            begun_with, rest_with = begun + family.shared * (not here), max(rest, lengths[i] - family.shared)
            cost = begun_with + (rows + 1) * (rest_with + sampling.max_new_tokens)
            if rows == 0 or rows == batch_size or cost > batch_tokens:
                batches.append([])
                rows = 0
                begun_with, rest_with = family.shared, lengths[i] - family.shared
            begun, rest, rows, here = begun_with, rest_with, rows + 1, True
            batch = batches[-1]
            if batch and batch[-1].members[-1] in family.members:
                batch[-1] = Family((*batch[-1].members, i), family.shared)
            else:
                batch.append(Family((i,), family.shared))
    return batches
