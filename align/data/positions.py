"""Where the tokens of a row stand: at 0, 1, 2, … or where a placement of the group `positions` puts them.

    own        0 1 2 3 4 5 | 6 7        prompt of 6, each answer from 6 on
    placed     0 1 2 40 41 42 | 43 44   a gap in the prompt: the row trains distances that it is too short for
    placed     0 5 10 70 75 80 | 85 90  steps of 5, by which every answer goes on

Positions always increase strictly, and all answers of a row share the prompt's. A document of plain text has one answer
and no siblings, so that all its tokens are placed, as in the papers, which train on documents.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from align.core.errors import UserError

if TYPE_CHECKING:
    from align.data.examples import TokenizedExample
    from align.models.reach import Reach


@dataclass(frozen=True)
class PromptParts:
    """How many tokens each stretch of what is placed has.

    A system part of 20, two chunks of 512, a question of 30 and answers of 50 and 40 tokens are 20, (512, 512), 30 and
    50. A conversation of 90 tokens without a context is 0, (), 90 and its longest answer; a document of 2,000 tokens,
    which is placed whole, 0, (), 2,000 and 0.

    Attributes:
        system: tokens before the first chunk.
        chunks: of each chunk of the context, with what stands between it and the next.
        question: tokens after the last chunk.
        answer: of the longest answer, which goes on behind the prompt by the step.
    """

    system: int
    chunks: tuple[int, ...]
    question: int
    answer: int

    @property
    def tokens(self) -> int:
        """P: tokens that are placed."""
        return self.system + sum(self.chunks) + self.question

    @property
    def length(self) -> int:
        """P and the longest answer."""
        return self.tokens + self.answer


@dataclass(frozen=True)
class Placed:
    """Where a prompt stands: `Placed([0, 5, 10, 70], step=5)`, whose answers stand at 75, 80, …

    Attributes:
        positions: `[P]` int64, from 0 on, strictly increasing.
        step: by what every answer goes on, 1 or more.
    """

    positions: np.ndarray
    step: int = 1


class Placement(Protocol):
    """Where the tokens of prompts stand: a frozen dataclass, whose fields are the keys of the group `positions`.

    Two keys are the group's own and reach no placement: `chunk_tokens` and `redraw` (settings.PositionSettings).
    """

    @property
    def target_length(self) -> int | None:
        """K, tokens: every position, of answers too, is below it; None where it follows from the model (`fitted`)."""

    def check(self) -> None:
        """Raises UserError where a key is out of its range."""

    def fitted(self, reach: Reach) -> Placement:
        """The placement for a model, its K known; itself where nothing follows from the model.

        Args:
            reach: tokens that the checkpoint was made for, and by what its RoPE divides positions.

        Raises:
            UserError: the model cannot read such positions.
        """

    def place(self, parts: PromptParts, rng: np.random.Generator) -> Placed | None:
        """`[P]` positions of one prompt, and the step of its answers; None leaves the row where it is.

        Args:
            parts: P tokens by stretch, and those of the longest answer, which have to stay below K too.
            rng: the row's own.

        Raises:
            UserError: the row does not fit.
        """


@dataclass(frozen=True)
class Drawn:
    """What a row's positions are drawn by, beside seed and epoch: `Drawn(0, 16, 50)` is `train.jsonl:17`.

    Attributes:
        source: number of the place that the row comes from (`data.path`, the held-out rows, each of `data.mix`), so
            that rows of one index in two places draw apart.
        index: of the row in it.
        room: tokens kept free behind the prompt.
    """

    source: int
    index: int
    room: int


def row_rng(seed: int, source: int, index: int, *, epoch: int = 0, piece: int = 0) -> np.random.Generator:
    """The random numbers of one row: the same whatever the order, the worker or the process that draws.

    Args:
        seed: of the run.
        source: see `Drawn`.
        index: see `Drawn`.
        epoch: from 0; another one draws apart.
        piece: of a document, from 1; 0 for every other row.
    """
    more = [epoch, piece] if epoch or piece else []
    return np.random.default_rng([seed, source, index, *more])


def place_row(
    example: TokenizedExample, placement: Placement, drawn: Drawn, *, seed: int, epoch: int = 0
) -> TokenizedExample:
    """The row where a placement puts it, with what it was drawn by; as it is where that leaves it.

    Args:
        example: a row whose context chunks are marked in `chunk_spans`. What stands between two chunks
            belongs to the former.
        placement: fitted to the model.
        drawn: place and number of the row, and the room behind its prompt.
        seed: of the run.
        epoch: see `row_rng`.

    Raises:
        UserError: the placement refuses the row, or gives no positions for it; names the row.
    """
    parts = parts_of(example, room=drawn.room)
    rng = row_rng(seed, drawn.source, drawn.index, epoch=epoch, piece=example.piece)
    try:
        placed = placement.place(parts, rng)
        if placed is None:
            return example
        _check(placed, parts, placement)
    except UserError as error:
        raise UserError(f"{example.source}: {error}") from error
    positions, prompt = placed.positions.astype(np.int64), len(example.prompt_ids)
    answers = example.answers
    if example.is_document:
        answers = (replace(answers[0], positions=positions[prompt:]),)
    return replace(
        example, position_ids=positions[:prompt], position_step=placed.step, answers=answers, drawn=drawn
    )


def room_of(example: TokenizedExample) -> int:
    """Tokens to keep free behind the prompt: its longest answer's; of a document, which is placed whole, none."""
    return 0 if example.is_document else example.longest_answer


def parts_of(example: TokenizedExample, *, room: int) -> PromptParts:
    """A row by stretches; `room` is kept free behind it."""
    tokens = len(example.prompt_ids)
    if example.is_document:
        return PromptParts(0, (), tokens + example.longest_answer, room)
    starts = [start for start, stop in example.chunk_spans if stop > start]
    if not starts:
        return PromptParts(0, (), tokens, room)
    stop = example.chunk_spans[-1][1]
    chunks = tuple(int(n) for n in np.diff([*starts, stop]))
    return PromptParts(starts[0], chunks, tokens - stop, room)


def _check(placed: Any, parts: PromptParts, placement: Placement) -> None:
    """Refuses what is no position of each token: a placement may be somebody else's."""
    name = f"{type(placement).__name__}.place"
    positions = getattr(placed, "positions", None)
    if not isinstance(placed, Placed) or not isinstance(positions, np.ndarray):
        raise UserError(f"{name} gave no align.data.positions.Placed with an array.")
    if positions.shape != (parts.tokens,) or positions.dtype.kind not in "iu":
        raise UserError(
            f"{name} gave {positions.dtype} of the shape {positions.shape} for {parts.tokens} tokens: give one integer "
            "for each."
        )
    if placed.step < 1 or positions[0] < 0 or (np.diff(positions) < 1).any():
        raise UserError(f"{name} gave positions that do not increase strictly from 0 or more.")
    most, largest = placement.target_length, int(positions[-1]) + placed.step * parts.answer
    if most is not None and largest >= most:
        raise UserError(
            f"{name} gave positions up to {largest}, which is not below positions.target_length={most}."
        )
