"""Answers to one writing instruction, wherever they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from align.scores.length import count_words
from align.synthesis.answers import trim_cut

if TYPE_CHECKING:
    from align.generation.generators import Completion


@dataclass(frozen=True)
class Candidate:
    """One answer.

    Attributes:
        text: not empty.
        source: `sampled`, `agent_write` or `self_lengthen`.
        whole: False where the model was cut off at its last sentence.
        record: how it was made, for the row: seeds, steps, tries.
    """

    text: str
    source: str
    whole: bool
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> int:
        """As LongBench-Write counts them."""
        return count_words(self.text)


@dataclass
class Written:
    """The candidates of one instruction, and what happened on the way.

    Attributes:
        candidates: in the order of their making.
        counts: steps written, re-asked, …, for the summary.
        dropped: reason → number of answers that came to nothing.
    """

    candidates: list[Candidate] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


def from_completion(completion: Completion, source: str, record: Mapping[str, Any]) -> Candidate | None:
    """An answer in one call, trimmed where it was cut; None where it is empty."""
    text = trim_cut(completion).strip()
    return Candidate(text, source, completion.finish == "stop", record) if text else None
