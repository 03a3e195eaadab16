"""Part `qa`: who is held out, and what is asked of them. Splits by question and passage; see PROTOCOL.md."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.evaluation.answers import contains_answer, normalise
from align.evaluation.haystacks import read_rows
from align.synthesis.generators import derive_seed

FILE = "multi_document_qa/nq-open-oracle.jsonl.gz"  # in ALIGN_DATA
TRAINED, BEYOND = 6, 24  # passages of a context
GROUPS = 9  # of BEYOND held-out questions each; one group more is the development set
SOURCES = 360  # training questions that rows are made of
CONDITIONS = {"alone": 1, "trained": TRAINED, "beyond": BEYOND}
SEPARATOR = "\n\n"  # between passages, and before the question: the defaults of the group `data`
QUESTION = "Answer in a few words, from the documents above: {question}?"
PASSAGE = "Document (Title: {title}) {text}"

Row = Mapping[str, Any]


def passage(row: Row) -> str:
    """The gold passage of a question, as it stands in a context."""
    return PASSAGE.format(title=row["ctxs"][0]["title"], text=row["ctxs"][0]["text"])


def asked(row: Row) -> str:
    """The question as it stands behind a context."""
    return QUESTION.format(question=row["question"].rstrip("? "))


def prompt(passages: Sequence[str], row: Row) -> str:
    """The whole user message."""
    return SEPARATOR.join((*passages, asked(row)))


def in_conflict(first: Row, second: Row) -> bool:
    """Whether either's passage holds an accepted answer of the other."""
    return contains_answer(passage(first), second["answers"]) or contains_answer(
        passage(second), first["answers"]
    )


@dataclass(frozen=True)
class Split:
    """Which questions are whose.

    Attributes:
        held_out: groups of `BEYOND` questions that can share a context.
        dev: one such group.
        train: all other questions.
    """

    held_out: tuple[tuple[Row, ...], ...]
    dev: tuple[tuple[Row, ...], ...]
    train: tuple[Row, ...]

    @classmethod
    def read(cls, data: Path) -> Split:
        """The split of the file in the folder `ALIGN_DATA`."""
        return cls.of(read_rows(str(data / FILE), ("question", "answers", "ctxs")))

    @classmethod
    def of(cls, rows: Sequence[Row], *, groups: int = GROUPS, size: int = BEYOND) -> Split:
        """Fills `groups` + 1 groups in one shuffled order, no conflict within a group; the rest trains.

        Raises:
            ValueError: too few questions go together.
        """
        unique = _unique(rows)
        random.Random(derive_seed(0, "miniature", "split")).shuffle(unique)
        filled: list[list[Row]] = [[] for _ in range(groups + 1)]
        train: list[Row] = []
        for row in unique:
            place = next(
                (
                    group
                    for group in filled
                    if len(group) < size and not any(in_conflict(row, other) for other in group)
                ),
                None,
            )
            (train if place is None else place).append(row)
        if any(len(group) < size for group in filled):
            raise ValueError(f"{len(unique)} questions do not fill {groups + 1} groups of {size}")
        whole = tuple(tuple(group) for group in filled)
        return cls(whole[:groups], whole[groups:], tuple(train))

    def context(self, place: int) -> tuple[list[str], int]:
        """The passages of training question number `place`, in order, and where its own stands."""
        row = self.train[place]
        rng = random.Random(derive_seed(0, "miniature", "context", str(place)))
        others: list[Row] = []
        while len(others) < TRAINED - 1:
            other = rng.choice(self.train)
            if other is not row and other not in others and not in_conflict(row, other):
                others.append(other)
        gold = rng.randrange(TRAINED)
        passages = [passage(other) for other in others]
        return [*passages[:gold], passage(row), *passages[gold:]], gold


def _unique(rows: Sequence[Row]) -> list[Row]:
    """One question a wording and a passage, the first that comes, and only those that can be answered."""
    seen: set[str] = set()
    kept = []
    for row in rows:
        names = {f"q:{normalise(row['question'])}", f"p:{normalise(row['ctxs'][0]['text'])}"}
        if not names & seen and contains_answer(row["ctxs"][0]["text"], row["answers"]):
            kept.append(row)
        seen |= names
    return kept


def held_out_questions(groups: Sequence[Sequence[Row]]) -> Iterator[dict[str, Any]]:
    """Rows of suite=questions: each question once a condition, in one order for all conditions.

    A group's questions share their context, so that it is read once. A condition of n passages cuts each group
    into contexts of n, in an order drawn for the condition.
    """
    for condition, size in CONDITIONS.items():
        for number, group in enumerate(groups):
            rng = random.Random(derive_seed(0, "miniature", condition, str(number)))
            order = rng.sample(range(len(group)), len(group))
            contexts = {
                place: [passage(group[other]) for other in order[start : start + size]]
                for start in range(0, len(group), size)
                for place in order[start : start + size]
            }
            for place, row in enumerate(group):
                yield {
                    "prompt": prompt(contexts[place], row),
                    "answers": row["answers"],
                    "group": condition,
                }
