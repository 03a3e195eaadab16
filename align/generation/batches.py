"""Which calls are computed together: a pure function of the calls, so that a restart computes the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

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

    Requests of one batch share their sampling, and their prompts are either all read after a prefix or
    all without one. A request over the budget has a batch of its own.

    Three prompts of 100 tokens that share 80, each with 10 new tokens, cost 80 + 3 · (20 + 10) = 170 together: with a
    budget of 150 the first two are one batch (80 + 2 · 30 = 140) and the third is another (80 + 30 = 110).

    Args:
        requests: all requests of a stage.
        lengths: `[len(requests)]` their prompts' tokens.
        families: every request in one.
        batch_tokens: most of (longest rest + new tokens) × rows, and the prefixes once each.
        batch_size: most rows.
    """

    def alike(family: Family) -> tuple[str, bool]:
        return repr(requests[family.members[0]].sampling), family.shared > 0

    def order(family: Family) -> tuple[tuple[str, bool], int, str]:
        longest = max(lengths[i] for i in family.members)
        return alike(family), -longest, requests[family.members[0]].id

    batches: list[_Batch] = []
    for _, together in groupby(sorted(families, key=order), key=alike):
        batches += _fill(together, requests, lengths, batch_tokens=batch_tokens, batch_size=batch_size)
    return [batch.families for batch in batches]


class _Batch:
    """A batch that is being filled.

    Attributes:
        families: those whose members are in it, with these members alone.
        rows: requests in it.
        prefix_tokens: of the prefixes of all its families.
        longest_rest: most tokens of a prompt behind its prefix.
    """

    def __init__(self) -> None:
        self.families: list[Family] = []
        self.rows = self.prefix_tokens = self.longest_rest = 0
        self._last: Family | None = None  # whose member came last, whole

    def cost_with(self, family: Family, length: int, new_tokens: int) -> int:
        """Tokens of the batch with one more prompt, of `length` tokens, of this family."""
        prefixes, rest = self._sizes_with(family, length)
        return prefixes + (self.rows + 1) * (rest + new_tokens)

    def add(self, family: Family, place: int, length: int) -> None:
        """Takes the request at `place` in; members of a family come one after the other."""
        self.prefix_tokens, self.longest_rest = self._sizes_with(family, length)
        self.rows += 1
        if self._last is family:
            self.families[-1] = Family((*self.families[-1].members, place), family.shared)
        else:
            self.families.append(Family((place,), family.shared))
        self._last = family

    def _sizes_with(self, family: Family, length: int) -> tuple[int, int]:
        new_prefix = 0 if self._last is family else family.shared
        return self.prefix_tokens + new_prefix, max(self.longest_rest, length - family.shared)


def _fill(
    families: Iterable[Family],
    requests: Sequence[Request],
    lengths: Sequence[int],
    *,
    batch_tokens: int,
    batch_size: int,
) -> list[_Batch]:
    """Batches of families that may be computed together, in their order; each is filled before the next begins."""
    batches = [_Batch()]
    for family in families:
        new_tokens = requests[family.members[0]].sampling.max_new_tokens
        for place in family.members:
            rows = batches[-1].rows
            too_large = batches[-1].cost_with(family, lengths[place], new_tokens) > batch_tokens
            if rows and (rows == batch_size or too_large):
                batches.append(_Batch())
            batches[-1].add(family, place, lengths[place])
    return batches


def pad_rows(
    prompts: Sequence[np.ndarray], batch: Sequence[Family], pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """The prompts of a batch as `[rows, T]` ids and mask, int64: each is padding, prefix, padding, rest.

    Prefixes of 4 and 6 tokens with rests of 3 and 1 make rows of 6 + 3: `· · p p p p r r r` and `p p p p p p · · r`.

    Args:
        prompts: ids of all prompts of the stage.
        batch: as from `fixed_batches`.
        pad: id of the padding, which the mask leaves out.
    """
    rows = [(family.shared, prompts[i]) for family in batch for i in family.members]
    prefix_end = max(shared for shared, _ in rows)
    end = prefix_end + max(len(prompt) - shared for shared, prompt in rows)
    ids = np.full((len(rows), end), pad, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, (shared, prompt) in enumerate(rows):
        for tokens, stop in ((prompt[:shared], prefix_end), (prompt[shared:], end)):
            ids[row, stop - len(tokens) : stop] = tokens
            mask[row, stop - len(tokens) : stop] = 1
    return ids, mask
