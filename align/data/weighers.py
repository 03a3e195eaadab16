"""The weighers of the group `token_weights`: by spans that rows bring, and by the rank of ids in an answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from align.core.errors import UserError
from align.data.contents import as_text
from align.data.weighing import AnswerText


@dataclass(frozen=True)
class Spans:
    """`token_weights=spans`: tokens weigh what the row says of their characters; hydra_conf/token_weights/spans.yaml.

    `{"chosen": "call get_weather now", "spans": [[5, 16, 2.5]]}`: the tokens of `get_weather` weigh 2.5, the others 1.

    Attributes:
        column: holds `[start, stop, weight]` for each span of the chosen answer, characters from 0, the stop excluded;
            or a list of such lists, one an answer, the chosen one's first. Of a row of several turns, one of these a
            turn. A token weighs by the last span of which it has a character.
        default: of tokens in no span.
        template: of tokens that the chat template has written: the end of a turn, tags around reasoning.
    """

    column: str = "spans"
    default: float = 1.0
    template: float = 1.0

    def check(self) -> None:
        """Raises UserError where a weight is below 0."""
        _check_weights(default=self.default, template=self.template)

    def reads(self) -> tuple[str, ...]:
        """Its column."""
        return (self.column,)

    def weights(self, answer: AnswerText, row: Mapping[str, Any]) -> np.ndarray:
        """See `Weigher.weights`."""
        weights = np.where(answer.of_template, self.template, self.default)
        for start, stop, weight in self._of_answer(answer, row):
            if not (0 <= start < stop <= len(answer.text)):
                raise UserError(
                    f"column {self.column} has the span [{start:g}, {stop:g}] for an answer of {len(answer.text)} "
                    "characters: it has to lie within, and hold one at least."
                )
            weights[answer.inside(int(start), int(stop))] = weight
        return weights

    def _of_answer(self, answer: AnswerText, row: Mapping[str, Any]) -> list[list[float]]:
        """The spans of one answer of one turn."""
        spans = _listed(row.get(self.column))
        if spans is None:
            raise UserError(
                f"column {self.column}, which token_weights.column names, is missing: an answer whose tokens all weigh "
                "the same has an empty list."
            )
        if answer.turns > 1:
            spans = self._entry(spans, answer.turn, answer.turns, "turn")
        if spans and not _is_span(spans[0]):
            spans = spans[answer.number] if answer.number < len(spans) else None
        elif answer.number:
            spans = []
        if not isinstance(spans, list) or not all(_is_span(span) for span in spans):
            raise UserError(
                f"column {self.column} must hold a list of [start, stop, weight] for the chosen answer, or such a list "
                "for each answer; in a row of several turns, one of these a turn."
            )
        return spans

    def _entry(self, entries: list[Any], number: int, count: int, what: str) -> list[Any]:
        if len(entries) != count or not isinstance(entries[number], list):
            raise UserError(f"column {self.column} must hold one list for each of the row's {count} {what}s.")
        found: list[Any] = entries[number]
        return found


@dataclass(frozen=True)
class Rank:
    """`token_weights=rank`: early ids of a ranking weigh more (arXiv 2412.14574); hydra_conf/token_weights/rank.yaml.

    The id at rank p weighs 1 + 1 / log2(p + 1): 2, 1.63, 1.5, … In `[3] > [1]` the 3 weighs 2 and the 1 1.63.

    Attributes:
        id: a regular expression for an id: what its first group matches, or all of it where it has none.
        alpha: α, of every other token, the chat template's included.
    """

    id: str = r"\[(\d+)\]"
    alpha: float = 1.0

    def check(self) -> None:
        """Raises UserError where the pattern or the weight is none."""
        _check_weights(alpha=self.alpha)
        try:
            re.compile(self.id)
        except re.error as error:
            raise UserError(f"token_weights.id={self.id} is no regular expression: {error}.") from error

    def reads(self) -> tuple[str, ...]:
        """Nothing but the answer."""
        return ()

    def weights(self, answer: AnswerText, row: Mapping[str, Any]) -> np.ndarray:
        """See `Weigher.weights`."""
        weights = np.full(len(answer.starts), self.alpha)
        for rank, match in enumerate(re.finditer(self.id, answer.text), start=1):
            start, stop = match.span(1 if match.re.groups else 0)
            weights[answer.inside(start, stop)] = 1 + 1 / math.log2(rank + 1)
        return weights


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise UserError(f"token_weights.{name}={weight:g} must be a number from 0 on.")


def _listed(value: Any) -> list[Any] | None:
    """A list, also one that a table holds as JSON; None where there is none."""
    text = as_text(value)
    if isinstance(text, str):
        try:
            value = json.loads(text)
        except ValueError:
            return None
    return value if isinstance(value, list) else None


def _is_span(value: Any) -> bool:
    """Whether it is `[start, stop, weight]`."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(one, int | float) and not isinstance(one, bool) for one in value)
    )
