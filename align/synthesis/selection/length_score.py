"""Minimum Tuning (arXiv 2410.10210): rows whose answer has the one length that the prompt states."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from align.core.errors import UserError
from align.core.readable import counted
from align.data.thinking import without_thinking
from align.scores.length import count_words, length_score, required_length, stated_lengths
from align.synthesis.selection.marking import requests
from align.synthesis.selection.select import Score, check_keep, read_texts

if TYPE_CHECKING:
    from align.data.examples import Example
    from align.generation.stage import Workspace


@dataclass(frozen=True)
class LengthScore:
    """`select=length_score`; hydra_conf/select/length_score.yaml comments every key.

    An answer of 715 words to `Write 1,000 words about tea.` has S_l = 80.07 and is kept at `least=80`, one of 714
    words has 79.97 and is not. A row of several turns has the score of the turn that met its length worst.

    Attributes:
        least: S_l, 0 … 100, at least.
        keep: see `Selector`.
    """

    least: float = 80.0
    keep: float | None = None

    @property
    def name(self) -> str:
        """Name and parameters."""
        return f"length_score(least={self.least:g})"

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_keep(self.keep)
        if not 0 <= self.least <= 100:
            raise UserError(f"select.least={self.least} must lie in [0, 100], as the scores of lengths do.")

    def scores(self, path: Path, workspace: Workspace) -> list[Score]:
        """S_l of every row's chosen answer; rows that state no length, or several, have none."""
        return [self._score(example) for _, example in read_texts(path)]

    def _score(self, example: Example) -> Score:
        worst: Score | None = None
        several = len(example.turns) > 1
        for place, (request, turn) in enumerate(zip(requests(example), example.turns, strict=True), start=1):
            answer = without_thinking(turn.chosen)[0]
            score = self._turn(request, answer, f"turn {place}: " if several else "")
            if score.value is None and score.details is None:
                return score  # no length is known
            if worst is None or _met(score) < _met(worst):
                worst = score
        assert worst is not None  # a row has a turn at least
        return worst

    def _turn(self, request: str, answer: str, of: str) -> Score:
        required = required_length(request)
        if required is None:
            stated = len(set(stated_lengths(request)))
            what = (
                "the length of each part and not how many parts there are"
                if stated == 1
                else f"{counted(stated, 'length')} in words, where one is needed"
            )
            return Score(None, f"{of}the prompt states {what}")
        written = count_words(answer)
        score = length_score(required, written)
        enough = score >= self.least
        met = f"S_l {score:.2f} {'≥' if enough else '<'} {self.least:g}"
        why = f"{of}{written} words where {required} were asked for: {met}"
        details = {"length_score": score, "required": float(required), "written": float(written)}
        return Score(score if enough else None, why, details)


def _met(score: Score) -> float:
    return (score.details or {})["length_score"]
