"""Lengths of rows, and how `model.attention` has them read: tokens, scored tokens and pairs of attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from align.models.settings import LIBRARY, MASKED
from align.patterns.by_head import ByHead, seen_pairs
from align.patterns.pattern import FULL, Pattern


@dataclass(frozen=True)
class Rows:
    """A micro-batch of one process group, in tokens.

    `Rows(prompt=1000, answers=(100, 50), prompts=2)`: two prompts with a chosen answer of 100 and a rejected one of 50,
    2,300 tokens of which 300 are scored.

    Attributes:
        prompt: P, tokens of the longest prompt.
        answers: a_0 (chosen), a_1 … a_M (rejected), tokens of each.
        short_prompt: tokens of the short context; 0 where the method reads none.
        prompts: how many such prompts a micro-batch has.
        copies: rows that one of them takes: 1, or as many as it has answers where each is behind a copy of its own.
        mean_prompt: tokens of the average prompt, for time; None is `prompt`.
        shared: whether they go through our attention, which can be tiled and sharded.
    """

    shared: ClassVar[bool] = True
    prompt: int
    answers: tuple[int, ...]
    short_prompt: int = 0
    prompts: int = 1
    mean_prompt: int | None = None
    copies: int = 1

    @property
    def rows(self) -> int:
        """Rows of a micro-batch: prompts · copies."""
        return self.prompts * self.copies

    @property
    def tokens(self) -> int:
        """T: rows · (P + Σ a), where P + Σ a is a shared-prefix row."""
        return self.rows * (self.prompt + sum(self.answers))

    @property
    def scored(self) -> int:
        """Answer tokens."""
        return self.rows * sum(self.answers)

    @property
    def at_once(self) -> int:
        """Tokens of one call of the model: all."""
        return self.tokens

    @property
    def mask(self) -> int:
        """Entries of a mask: there is none."""
        return 0

    def head_at_once(self, nll_scope: str) -> int:
        """Tokens that the head scores in one call: the answers', and with `sequence` (LongPO's NLL) the prompt's."""
        return self.head(nll_scope)

    def head(self, nll_scope: str) -> int:
        """Tokens that the head scores."""
        return self.scored + (self.rows * self.prompt if nll_scope == "sequence" else 0)

    def pairs(self, pattern: Pattern | ByHead = FULL) -> float:
        """(query, key) pairs that a layer's attention works on; in a full one about P²/2 + Σ a·(P + a/2) a row."""
        answers = sum(seen_pairs(pattern, (self.prompt, self.prompt + a)) for a in self.answers)
        return self.rows * (seen_pairs(pattern, (0, self.prompt)) + answers)

    def short(self) -> Rows:
        """The same answers on the short context."""
        return type(self)(self.short_prompt, self.answers, prompts=self.prompts, copies=self.copies)

    def behind(self, tokens: int) -> Rows:
        """The same behind a soft prompt of so many tokens, which every prompt begins with."""
        short = self.short_prompt and self.short_prompt + tokens
        mean = None if self.mean_prompt is None else self.mean_prompt + tokens
        return replace(self, prompt=self.prompt + tokens, short_prompt=short, mean_prompt=mean)

    def average(self) -> Rows:
        """The average prompt in the longest one's place."""
        return replace(self, prompt=self.mean_prompt or self.prompt, mean_prompt=None)


@dataclass(frozen=True)
class OwnRows(Rows):
    """The same where each answer is read behind its whole prompt, one after the other (`model.attention=library`).

    `OwnRows(prompt=1000, answers=(100, 50), prompts=2)`: four rows, 4,300 tokens, of which the model reads 1,100
    at once.
    """

    shared: ClassVar[bool] = False

    @property
    def tokens(self) -> int:
        """rows · Σ (P + a)."""
        return self.rows * (len(self.answers) * self.prompt + sum(self.answers))

    @property
    def at_once(self) -> int:
        """P + max a: the longest row."""
        return self.prompt + max(self.answers)

    def head_at_once(self, nll_scope: str) -> int:
        """The longest answer, and with `sequence` the prompt, which the chosen answer's row scores."""
        return max(self.answers) + (self.prompt if nll_scope == "sequence" else 0)

    def pairs(self, pattern: Pattern | ByHead = FULL) -> float:
        """In a full layer about Σ (P + a)²/2 a row."""
        return self.rows * sum(seen_pairs(pattern, (0, self.prompt + a)) for a in self.answers)


@dataclass(frozen=True)
class MaskedRows(Rows):
    """The same where the library's attention reads each prompt with its answers by a mask (`model.attention=masked`).

    `MaskedRows(prompt=1000, answers=(100, 50), prompts=2)`: two rows of 1,150 tokens, read one after the other, each
    with a mask of 1,322,500 entries.
    """

    shared: ClassVar[bool] = False

    @property
    def at_once(self) -> int:
        """P + Σ a: one prompt with its answers."""
        return self.prompt + sum(self.answers)

    @property
    def mask(self) -> int:
        """Entries of a row's mask."""
        return self.at_once**2

    def head_at_once(self, nll_scope: str) -> int:
        """One prompt's answers, and with `sequence` the prompt."""
        return sum(self.answers) + (self.prompt if nll_scope == "sequence" else 0)

    def pairs(self, pattern: Pattern | ByHead = FULL) -> float:
        """(P + Σ a)² a row: those that are hidden are computed too."""
        return self.rows * self.mask


_READ: dict[str, type[Rows]] = {LIBRARY: OwnRows, MASKED: MaskedRows}


def as_read(rows: Rows, attention: str) -> Rows:
    """The rows as `model.attention` has them read: packed by our attention, or in the library's ways."""
    return _READ[attention](**vars(rows)) if attention in _READ else rows
