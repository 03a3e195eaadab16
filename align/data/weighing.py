"""Weights of an answer's tokens (`token_weights`): which characters each token stands for, and what it weighs.

A weigher sees an answer as its row has it. What the chat template writes around it and inside it, such as the end of
the turn or the tags around reasoning, is the template's, and so is reasoning that stands in a field of its own.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from align.core.errors import UserError
from align.core.readable import counted
from align.data import faults
from align.data.encoding import Encoded
from align.data.examples import Answer, Turn
from align.data.faults import RowError
from align.data.template import Fragment, Segment
from align.data.thinking import TAGS

NOBODYS = -1  # in the place of a character: the token is the template's
_CLOSINGS = frozenset(tags.closing for tags in TAGS)


@dataclass(frozen=True)
class AnswerText:
    """One answer of a row and where its n tokens stand in it.

    `ok [3]` with its end as the tokens `ok`, ` [`, `3`, `]`, `<|im_end|>`: `starts` 0 3 4 5 −1, `stops` 2 4 5 6 −1.

    Attributes:
        text: the answer as the row has it.
        starts: `[n]` the first character of each token that is not white space; −1 where it is the template's.
        stops: `[n]` the one after its last such character; −1 likewise.
        number: 0 for the chosen answer, then 1, 2, … for the rejected ones as the row lists them.
        turn: which of the row's turns, from 0.
        turns: how many there are.
    """

    text: str
    starts: np.ndarray
    stops: np.ndarray
    number: int = 0
    turn: int = 0
    turns: int = 1

    def inside(self, start: int, stop: int) -> np.ndarray:
        """`[n]` bool: tokens that have a character of `text[start:stop]`."""
        return (self.starts != NOBODYS) & (self.starts < stop) & (self.stops > start)

    @property
    def of_template(self) -> np.ndarray:
        """`[n]` bool: tokens that the template has written."""
        found: np.ndarray = self.starts == NOBODYS
        return found


class Weigher(Protocol):
    """What the tokens of answers weigh; a dataclass, whose fields are the keys of the group `token_weights`."""

    def check(self) -> None:
        """Raises UserError where a key is out of its range."""

    def reads(self) -> tuple[str, ...]:
        """Columns of a row that it reads."""

    def weights(self, answer: AnswerText, row: Mapping[str, Any]) -> np.ndarray:
        """`[n]` one number from 0 on for each token; raises UserError where the row does not say what it should.

        Args:
            answer: of one turn.
            row: column → value.
        """


def identity_of(settings: Any) -> Any:
    """What a weigher's weights, or a placement's positions, follow from: its class, the code of that, and its keys."""
    if settings is None:
        return None
    kind, keys = type(settings), asdict(settings)
    code = hashlib.blake2b(inspect.getsource(kind).encode(), digest_size=8).hexdigest()
    return [f"{kind.__module__}.{kind.__qualname__}", code, repr(sorted(keys.items()))]


@dataclass(frozen=True)
class RowWeights:
    """Weighs the answers of one row.

    Attributes:
        weigher: how.
        source: where the row stands.
        row: its columns.
        turns: its turns, whose answers are as the row has them.
        numbers: of each answer in the row's own count, of which some may have been left out: 0, 1, 3.
        first: number of the first turn, where a turn stands alone (on its short context).
        count: turns of the whole row.
    """

    weigher: Weigher
    source: str
    row: Mapping[str, Any]
    turns: tuple[Turn, ...]
    numbers: tuple[int, ...]
    first: int = 0
    count: int = 1

    def of_turn(self, turn: int) -> RowWeights:
        """For one turn alone."""
        return replace(self, turns=self.turns[turn : turn + 1], first=turn)

    def weigh(
        self, answer: Answer, number: int, parts: Sequence[tuple[Segment, Encoded]], specials: re.Pattern[str]
    ) -> Answer:
        """The answer with its weights, 0 where nothing is scored.

        Args:
            answer: of this row.
            number: which of its answers, from 0.
            parts: its segments, turn by turn with what stands between them, and their tokens.
            specials: matches special tokens.

        Raises:
            UserError: the row does not say what the weigher reads, or its weights are no weights.
        """
        found = []
        for place, (segment, encoded) in enumerate(parts):
            if not segment.scored:
                found.append(np.zeros(len(encoded.ids)))
                continue
            turn = self.turns[place // 2]
            text = (turn.chosen, *turn.rejected)[number]
            starts, stops = self._places(text, segment.fragments, encoded, specials)
            own = AnswerText(text, starts, stops, self.numbers[number], self.first + place // 2, self.count)
            found.append(self._checked(self.weigher.weights(own, self.row), len(starts)))
        weights = np.concatenate(found)
        if number == 0 and not weights[answer.scored].sum() > 0:
            raise RowError(self.source, "every token of the chosen answer weighs 0: leave the row out.")
        return replace(answer, weights=weights)

    def _places(
        self, text: str, fragments: Sequence[Fragment], encoded: Encoded, specials: re.Pattern[str]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`starts` and `stops` of an answer's tokens."""
        origins = origins_of(text, fragments, specials)
        if origins is None:
            raise RowError(
                self.source,
                "the chat template rewrites an answer, so that its characters and with them their weights are not "
                "found: leave the row out, or set token_weights=none.",
                reason=faults.TEMPLATE,
            )
        written = "".join(fragment.text for fragment in fragments)
        places = np.full((len(encoded.ids), 2), NOBODYS)
        edges = [*encoded.starts.tolist(), len(written)]
        for i, start in enumerate(edges[:-1]):
            # Tokens of bytes may share a character: the last one goes on to the next.
            stretch = written[start : max(edges[i + 1], start + 1)]
            first = start + len(stretch) - len(stretch.lstrip())
            own = (
                origins[first : first + len(stretch.strip())]
                if stretch.strip()
                else origins[start : start + 1]
            )
            if (own := own[own != NOBODYS]).size:
                places[i] = own[0], own[-1] + 1
        return places[:, 0], places[:, 1]

    def _checked(self, weights: np.ndarray, tokens: int) -> np.ndarray:
        """What a weigher gave, as weights."""
        found = np.asarray(weights, dtype=np.float64)
        if found.shape != (tokens,):
            raise UserError(
                f"token_weights: {type(self.weigher).__name__}.weights gave an array of the shape {found.shape} for "
                f"{counted(tokens, 'token')}."
            )
        if not (np.isfinite(found) & (found >= 0)).all():
            raise RowError(
                self.source, "a token's weight is below 0 or not finite.", reason=faults.WRONG_TYPE
            )
        return found


def origins_of(text: str, fragments: Sequence[Fragment], specials: re.Pattern[str]) -> np.ndarray | None:
    """Of each character that the template wrote for an answer its place in the answer; −1 where it is the template's.

    The answer `<think>So.</think>Yes.` that is written `<think>⏎So.⏎</think>⏎⏎Yes.<|im_end|>` gives −1 for the tags and
    line breaks, 7 … 9 for `So.`, and 18 … 21 for `Yes.`. Parts are found from the end: behind the last one the answer
    has nothing but white space or an end token, and between two of them only a closing tag.

    Args:
        text: the answer.
        fragments: what was written.
        specials: matches special tokens.

    Returns:
        None where the answer is not found.
    """
    origins = np.full(sum(len(fragment.text) for fragment in fragments), NOBODYS)
    at, limit = len(origins), len(text)
    for fragment in reversed(fragments):
        at -= len(fragment.text)
        core = fragment.text.strip()
        if fragment.kind == "template" or not core:
            continue
        found = text.rfind(core, 0, limit)
        behind = text[found + len(core) : limit].strip()
        if found < 0 or (behind and behind not in _CLOSINGS and not specials.fullmatch(behind)):
            continue
        own = np.arange(len(fragment.text)) + found - fragment.text.index(core)
        origins[at : at + len(own)] = np.where((own >= 0) & (own < limit), own, NOBODYS)
        limit = found
    return None if text.strip() and (origins == NOBODYS).all() else origins
