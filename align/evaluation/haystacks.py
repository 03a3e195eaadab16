"""Long prompts with one thing to find at a chosen depth: a sentence, a value of a key, a passage."""

from __future__ import annotations

import random
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from align.core.errors import UserError
from align.documents.loading import load_documents
from align.evaluation.files import read_rows
from align.evaluation.haystack_rows import PAIR_COLUMNS, PASSAGE_COLUMNS, check_pairs, check_passages
from align.generation.generators import derive_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SENTENCE_START = re.compile(r"(?<=[.!?])\s+|\n\s*\n\s*")
# fmt: off
_CITIES = (
    "Lisbon", "Osaka", "Nairobi", "Quito", "Oslo", "Hanoi", "Perth", "Cairo",
    "Lima", "Turin", "Dakar", "Riga", "Bergen", "Cusco", "Kyoto", "Sofia",
    "Tunis", "Zagreb", "Bilbao", "Durban", "Ghent", "Havana", "Izmir", "Leeds",
)
# fmt: on
NEEDLE = "The special number of {city} is {number}."
NEEDLE_QUESTION = "What is the special number of {city}? Answer with the number."
KEY_VALUE_INTRODUCTION = "The JSON object below holds keys and values.\n\n"
KEY_VALUE_QUESTION = 'What is the value of the key "{key}"? Answer with the value alone.'
MOST_PAIRS = 19_999  # that are drawn for a prompt
PASSAGE = "Document [{number}] (Title: {title}) {text}"
PASSAGES_INTRODUCTION = "Some of these documents help to answer the question at the end.\n\n"
PASSAGES_QUESTION = "Answer in a few words, from the documents above: {question}?"

FIRST = 8  # units of hay that are tried first

# Makes the prompt with `size` units of hay (sentences, pairs or passages): larger sizes, longer prompts.
Build = Callable[[int], "Found"]


@dataclass(frozen=True)
class Found:
    """A prompt's content and the answers that count as right."""

    content: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Hay:
    """What a prompt of any length is made of.

    Attributes:
        build: gives the prompt with so many units of hay.
        least, most: units that there are.
        unit: what prompts that are not independent have in common: the question that is asked at every length.
    """

    build: Build
    least: int
    most: int
    unit: str


def fit(
    build: Build, count: Callable[[str], int], *, budget: int, most: int, least: int, where: str
) -> Found:
    """The longest prompt of at most `budget` tokens.

    Its size is doubled until it is too large, then bisected: what is read is a few times the prompt, however much hay
    there is.

    Raises:
        UserError: not even the smallest fits; `where` names what was wanted.
    """
    low, high, best = least, most, None
    size = least + FIRST
    while size < high:
        found = build(size)
        if count(found.content) > budget:
            high = size - 1
        else:
            best, low, size = found, size + 1, least + 2 * (size - least)
    while low <= high:
        middle = (low + high) // 2
        found = build(middle)
        if count(found.content) <= budget:
            best, low = found, middle + 1
        else:
            high = middle - 1
    if best is None:
        raise UserError(f"{where}: nothing to find fits into {budget} tokens: choose a larger length.")
    return best


@dataclass(frozen=True)
class Needles:
    """A sentence with a number, put between two sentences of real text.

    The hay is the same in every prompt of a length, so that prompts of a depth share their beginning. City and number
    are drawn anew for every prompt.
    """

    documents: str
    seed: int
    name: str = "needles"

    @cached_property
    def hay(self) -> str:
        """All documents, shuffled once."""
        documents = load_documents(self.documents, key="suite.documents")
        random.Random(derive_seed(self.seed, "hay")).shuffle(documents)
        return "\n\n".join(document.text for document in documents)

    @cached_property
    def _starts(self) -> list[int]:
        """Where sentences begin."""
        return [0, *(match.end() for match in _SENTENCE_START.finditer(self.hay))]

    def hay_of(self, length: int, depth: float, sample: int) -> Hay:
        """The prompt by its number of sentences; depth 0 is the very beginning, 1 the end of the hay."""
        rng = random.Random(derive_seed(self.seed, "needle", str(length), str(depth), str(sample)))
        city, number = rng.choice(_CITIES), str(rng.randint(1_000_000, 9_999_999))
        needle = NEEDLE.format(city=city, number=number)

        def build(sentences: int) -> Found:
            place = self._starts[round(depth * sentences)]
            end = self._starts[sentences]
            before, after = self.hay[:place].rstrip(), self.hay[place:end].strip()
            text = " ".join(part for part in (before, needle, after) if part)
            return Found(f"{text}\n\n{NEEDLE_QUESTION.format(city=city)}", (number,))

        return Hay(build, 0, len(self._starts) - 1, f"{length}/{depth:g}/{sample}")


@dataclass(frozen=True)
class KeyValue:
    """A JSON object of random identifiers (Liu et al. 2023, arXiv:2307.03172, section 3); `path` brings pairs."""

    path: str | None
    seed: int
    name: str = "key_value"

    def hay_of(self, length: int, depth: float, sample: int) -> Hay:
        """The prompt by its number of pairs; sample i asks for the same one at every depth and length."""
        rng = random.Random(derive_seed(self.seed, "pairs", str(sample)))
        pairs = self._from_file(sample) if self.path else [(_identifier(rng), _identifier(rng))]
        asked, hay = pairs[0], pairs[1:]

        def build(count: int) -> Found:
            while len(hay) < count:  # none where they come from a file
                hay.append((_identifier(rng), _identifier(rng)))
            place = round(depth * count)
            chosen = [*hay[:place], asked, *hay[place:count]]
            lines = ",\n".join(f'"{key}": "{value}"' for key, value in chosen)
            question = KEY_VALUE_QUESTION.format(key=asked[0])
            return Found(f"{KEY_VALUE_INTRODUCTION}{{{lines}}}\n\n{question}", (asked[1],))

        return Hay(build, 0, len(hay) if self.path else MOST_PAIRS, asked[0])

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        return read_rows(str(self.path), PAIR_COLUMNS, check=check_pairs)

    def _from_file(self, sample: int) -> list[tuple[str, str]]:
        row = self._rows[sample % len(self._rows)]
        asked = (row["key"], row["value"])
        return [asked, *((k, v) for k, v in row["ordered_kv_records"] if k != asked[0])]


@dataclass(frozen=True)
class MultiDocument:
    """A question's own passage among passages of other questions (Liu et al. 2023, section 2)."""

    path: str
    seed: int
    name: str = "multi_document"

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Questions with their passage first, in an order drawn by the seed."""
        rows = read_rows(self.path, PASSAGE_COLUMNS, check=check_passages)
        random.Random(derive_seed(self.seed, "questions")).shuffle(rows)
        return rows

    def hay_of(self, length: int, depth: float, sample: int) -> Hay:
        """The prompt by its number of distractors; sample i asks the same question at every depth and length."""
        row = self.rows[sample % len(self.rows)]
        rng = random.Random(derive_seed(self.seed, "distractors", str(sample)))
        others = [other for other in self.rows if other["question"] != row["question"]]
        rng.shuffle(others)
        hay = [
            other["ctxs"][0]
            for other in others[:2000]
            if not any(answer.casefold() in other["ctxs"][0]["text"].casefold() for answer in row["answers"])
        ]

        def build(count: int) -> Found:
            place = round(depth * count)
            passages = [*hay[:place], row["ctxs"][0], *hay[place:count]]
            return Found(passages_prompt(passages, row["question"]), tuple(row["answers"]))

        return Hay(build, 0, len(hay), str(row["question"]))


def passages_prompt(passages: Sequence[dict[str, Any]], question: str) -> str:
    """Numbered passages, then the question."""
    numbered = [
        PASSAGE.format(number=i, title=passage["title"], text=passage["text"])
        for i, passage in enumerate(passages, start=1)
    ]
    asked = PASSAGES_QUESTION.format(question=question.rstrip("?"))
    return f"{PASSAGES_INTRODUCTION}{chr(10).join(numbered)}\n\n{asked}"


def token_counter(tokenizer: PreTrainedTokenizerBase) -> Callable[[str], int]:
    """Tokens of a text, special tokens' strings counted as plain text."""

    def count(text: str) -> int:
        return len(
            tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        )

    return count


def _identifier(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))
