"""Part `qa`: who is held out, and what is asked of them. Splits by question and passage; see PROTOCOL.md."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.documents.loading import load_documents
from align.evaluation.answers import contains_answer, normalise
from align.evaluation.haystacks import read_rows
from align.generation.generators import derive_seed

FILE = "multi_document_qa/nq-open-oracle.jsonl.gz"  # in ALIGN_DATA
PROSE = "documents/state_union.zip"  # there too: speeches
DENSITY = 1.16  # their characters a token of SmolLM2, over those of passages
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
    def read(cls, data: Path, *, groups: int = GROUPS) -> Split:
        """The split of the file in the folder `ALIGN_DATA`, with so many groups of held-out questions."""
        return cls.of(read_rows(str(data / FILE), ("question", "answers", "ctxs")), groups=groups)

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
    for condition in CONDITIONS:
        for number, group in enumerate(groups):
            cut = _cut(condition, number, len(group))
            yield from _ask(
                condition, group, [(places, [passage(group[i]) for i in places]) for places in cut]
            )


def diluted_questions(groups: Sequence[Sequence[Row]], data: Path) -> Iterator[dict[str, Any]]:
    """The contexts of `trained`, their passages in the same order, among speeches: as long as `beyond`.

    Of 24 slots each run of four has one passage, at a random slot; a piece of a speech in each of the others
    stands for another passage of the group, has about as many tokens, and holds no accepted answer.

    Args:
        groups: as for `held_out_questions`.
        data: the folder `ALIGN_DATA`.
    """
    documents = load_documents(str(data / PROSE), key="ALIGN_DATA")
    words = [word for document in documents for word in document.text.split()]
    for number, group in enumerate(groups):
        contexts = []
        for places in _cut("trained", number, len(group)):
            rng = random.Random(derive_seed(0, "miniature", "diluted", *map(str, (number, *places))))
            own = [group[i] for i in places]
            others = [row for i, row in enumerate(group) if i not in places]
            pieces = iter(_pieces(words, own, others, rng))
            run = 1 + len(others) // len(own)
            slots = [rng.randrange(run) for _ in own]
            passages = [
                passage(row) if slot == place else next(pieces)
                for row, slot in zip(own, slots, strict=True)
                for place in range(run)
            ]
            contexts.append((places, passages))
        yield from _ask("diluted", group, contexts)


def _cut(condition: str, number: int, group: int) -> list[list[int]]:
    """The questions of a group of that size which share a context, in the order of their passages."""
    rng = random.Random(derive_seed(0, "miniature", condition, str(number)))
    order = rng.sample(range(group), group)
    size = CONDITIONS[condition]
    return [order[start : start + size] for start in range(0, group, size)]


def _ask(
    condition: str, group: Sequence[Row], contexts: Sequence[tuple[list[int], list[str]]]
) -> Iterator[dict[str, Any]]:
    """The group's questions in its order, each behind the passages of its context."""
    passages = {place: context for places, context in contexts for place in places}
    for place, row in enumerate(group):
        yield {"prompt": prompt(passages[place], row), "answers": row["answers"], "group": condition}


def _pieces(
    words: Sequence[str], own: Sequence[Row], others: Sequence[Row], rng: random.Random
) -> Iterator[str]:
    """For each of `others` words in a row, as many tokens as its passage, without an accepted answer of `own`."""
    answers = [answer for row in own for answer in row["answers"]]
    ends = [0, *itertools.accumulate(len(word) + 1 for word in words)]
    for row in others:
        while True:
            start = rng.randrange(len(words))
            end = bisect.bisect(ends, ends[start] + round(DENSITY * len(passage(row))))
            piece = " ".join(words[start:end])
            if end < len(words) and not contains_answer(piece, answers):
                break
        yield piece
