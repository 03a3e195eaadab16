"""What a row is, before tokens (`Example`) and after (`TokenizedExample`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from align.data.positions import Drawn


@dataclass(frozen=True)
class Turn:
    """One question over the row's context and its answers: `Turn("How old is it?", "90 years.", ("Red.",))`.

    Attributes:
        question: the user's text of this turn; None where the prompt itself ends with the question.
        chosen: the better answer.
        rejected: the worse answers; may be empty (SFT).
        short_prompt: the same context made short (LongPO, SoLoPO) without the question where `question`
            is given, else the complete short prompt; None where the row has none.
        fields: `[1 + M]` what each answer's message has beside role and content, the chosen one's first:
            `tool_calls`, `reasoning_content`; empty where no answer has any.
        asked: what stands before the answers where that is more than the user's question: results of tool calls.
    """

    question: str | None
    chosen: str
    rejected: tuple[str, ...]
    short_prompt: str | None = None
    fields: tuple[Mapping[str, Any], ...] = ()
    asked: tuple[Mapping[str, Any], ...] = ()

    def rejects_the_same(self, j: int) -> bool:
        """Whether rejected answer j equals the chosen one."""
        same = self.rejected[j].strip() == self.chosen.strip()
        return same and (not self.fields or self.fields[j + 1] == self.fields[0])

    def with_rejected(self, kept: Sequence[int]) -> Turn:
        """The turn with these of its rejected answers."""
        fields = (self.fields[0], *(self.fields[j + 1] for j in kept)) if self.fields else ()
        return replace(self, rejected=tuple(self.rejected[j] for j in kept), fields=fields)


@dataclass(frozen=True)
class Example:
    """One row, as text, whatever layout it came in. Exactly one of `messages`, `text`, `chunks` is set.

    Attributes:
        source: where it stands, for messages to people: `train.jsonl:17`.
        turns: at least one; turn i sees the turns before it.
        messages: the prompt as chat messages, the last one the user's or a tool's (TRL's conversational rows).
        text: the prompt as plain text, used without a chat template (TRL's standard rows).
        chunks: the context's chunks in document order (`context` + `question` rows); the prompt is built
            by `data.template` and each turn has its `question`.
        system: optional system message, for `chunks` rows.
        tools: JSON schemas of the functions that the assistant may call.
        template_kwargs: variables of the chat template for this row alone.
        dropped_messages: messages behind the last answers, which nobody answers; they were left out.
        inferred: the prompt is what the answers begin with in common.
    """

    source: str
    turns: tuple[Turn, ...]
    messages: tuple[Mapping[str, Any], ...] = ()
    text: str | None = None
    chunks: tuple[str, ...] = ()
    system: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    dropped_messages: int = 0
    inferred: bool = False


@dataclass(frozen=True)
class Answer:
    """What follows the prompt: an answer, or in a row of several turns all answers with the questions between them.

    An answer of 3 tokens, a question of 4 with the template around it, and an answer of 2 have n = 9, of which 3 + 2
    are scored. Together with the prompt it makes a branch.

    Attributes:
        input_ids: `[n]` int64, n ≥ 1.
        scored: `[n]` bool: True where the token's log-prob counts. All True for a one-turn answer; in a
            row of several turns the later questions and the template between turns are False.
        weights: `[n]` fp64, what each token's log-prob is multiplied with in weighted sums (`token_weights`), not
            read where a token is not scored; None where all weigh 1.
        positions: `[n]` int64, where a document's tokens stand that were placed; None where the answer goes on behind
            its prompt (`TokenizedExample.positions_of`).
    """

    input_ids: np.ndarray
    scored: np.ndarray
    weights: np.ndarray | None = None
    positions: np.ndarray | None = None

    @property
    def weights_or_ones(self) -> np.ndarray:
        """`[n]` fp64."""
        return np.ones(len(self.input_ids)) if self.weights is None else self.weights


@dataclass(frozen=True)
class TokenizedExample:
    """One row as tokens: a prompt and its answers, the chosen one first.

    Attributes:
        source: as in `Example`.
        prompt_ids: `[P]` int64, P ≥ 1.
        position_ids: `[P]` int64, strictly increasing; 0 … P−1 without position synthesis.
        answers: 1 + M of them; `answers[0]` is the chosen one.
        chunk_spans: `(start, stop)` of each context chunk in `prompt_ids`, increasing and disjoint; the
            tokens before the first are the system part, those after the last the question.
        cut_tokens: how many context tokens were dropped to fit `data.max_length`.
        short: one row a turn on the short context, for references that see it (LongPO); else empty.
        dropped_reasoning: answers whose reasoning was left out (`data.thinking=drop`).
        dropped_messages: as in `Example`.
        rendered: the prompt was text that held special tokens, which count as such.
        moved_space: the prompt was text that ended in a space, which now begins its answers.
        as_text: the prompt was text that stands as it is, without a chat template.
        joined: messages, or a context with its question, without a chat template: nobody's role is told.
        inferred: as in `Example`.
        piece: of a document of plain text the how manieth piece, from 1 (text_rows.py); 0 for every other row. Its
            prompt is what it begins with and is never predicted, not even by an NLL over the whole sequence.
        document: of such a piece, and of a row of pieces, a hash of the whole document; else empty.
        columns: `[K, 1 + M]` fp64, the K numbers that the method reads of the row (`needs.columns`), each once for
            each answer; None where it reads none.
        pieces: of a row of pieces (piece_rows.py) how many it has; 0 for every other row. As of a document's piece, no
            token is predicted but those that are scored.
        soft: ids of a soft prompt at the prompt's head (`with_soft_prompt`).
        position_step: by what every answer goes on behind the prompt's last position; 1 without position synthesis.
        drawn: what its positions were drawn by (`positions.Drawn`); None where the tokens keep their own.
    """

    source: str
    prompt_ids: np.ndarray
    position_ids: np.ndarray
    answers: tuple[Answer, ...]
    chunk_spans: tuple[tuple[int, int], ...] = ()
    cut_tokens: int = 0
    short: tuple[TokenizedExample, ...] = ()
    dropped_reasoning: int = 0
    dropped_messages: int = 0
    rendered: bool = False
    moved_space: bool = False
    as_text: bool = False
    joined: bool = False
    inferred: bool = False
    piece: int = 0
    document: str = ""
    columns: np.ndarray | None = None
    pieces: int = 0
    soft: int = 0
    position_step: int = 1
    drawn: Drawn | None = None

    def positions_of(self, answer: Answer) -> np.ndarray:
        """`[n]` int64 positions of one of its answers: behind a prompt that ends at 70, by steps of 5, 75, 80, …"""
        if answer.positions is not None:
            return answer.positions
        return int(self.position_ids[-1]) + self.position_step * np.arange(1, len(answer.input_ids) + 1)

    @property
    def largest_position(self) -> int:
        """Of all its tokens: the last one of its longest answer."""
        return max(int(self.positions_of(answer)[-1]) for answer in self.answers if len(answer.input_ids))

    @property
    def is_document(self) -> bool:
        """Whether it is plain text, of which the scored tokens alone are predicted, whatever the scope of a loss."""
        return bool(self.piece or self.pieces)

    @property
    def longest_answer(self) -> int:
        """Tokens of the longest answer."""
        return max(len(answer.input_ids) for answer in self.answers)

    @property
    def num_tokens(self) -> int:
        """Tokens the model reads for this row, the prompt once and every answer: 1,000 + 100 + 50 are 1,150."""
        return len(self.prompt_ids) + sum(len(answer.input_ids) for answer in self.answers)


def with_soft_prompt(example: TokenizedExample, ids: np.ndarray) -> TokenizedExample:
    """The row with a soft prompt at the head of its prompt, and of its short ones; without ids the row itself.

    A prompt of the ids 7, 8, 9 at positions 0, 1, 50 behind a soft prompt of two tokens is 128, 129, 7, 8, 9 at
    0, 1, 2, 3, 52. What is scored stays the same: the soft prompt's tokens are none of a text.

    Args:
        example: a row without one.
        ids: `[k]` of the soft prompt's tokens (models/soft_prompt.py).
    """
    if not len(ids):
        return example
    return replace(
        example,
        prompt_ids=np.concatenate([ids, example.prompt_ids]),
        position_ids=np.concatenate([np.arange(len(ids)), example.position_ids + len(ids)]),
        answers=tuple(_moved(answer, len(ids)) for answer in example.answers),
        chunk_spans=tuple((start + len(ids), stop + len(ids)) for start, stop in example.chunk_spans),
        short=tuple(with_soft_prompt(turn, ids) for turn in example.short),
        soft=len(ids),
    )


def _moved(answer: Answer, by: int) -> Answer:
    """The answer with its own positions, where it has any, moved."""
    return answer if answer.positions is None else replace(answer, positions=answer.positions + by)
