"""Part `find`: facts among filler words, for a model whose window is 64 tokens; everything drawn, nothing read."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from align.generation.generators import derive_seed

KINDS, VALUES, FILLERS = 16, 12, 48
FACTS = 8  # in a context, each of another kind
CHUNK = 8  # tokens
TRAINED = 48  # tokens of a training context; with question and answer 60, within the window of 64
BEYOND = (256, 1024)
QUESTIONS = {"alone": 240, "trained": 240, "beyond_256": 120, "beyond_1024": 120}
TEMPLATE = 8  # tokens of the chat template around a question; each answer has one more, its end
ROWS = 1400  # more than the budget of any method takes
LENGTHS = {"alone": CHUNK, "trained": TRAINED, "beyond_256": BEYOND[0], "beyond_1024": BEYOND[1]}

WORDS = (
    "find",
    *(f"kind{kind:02}" for kind in range(KINDS)),
    *(f"f{kind:02}{value:02}" for kind in range(KINDS) for value in range(VALUES)),
    *(f"o{filler:02}" for filler in range(FILLERS)),
)


@dataclass(frozen=True)
class Context:
    """Words, and what is in them: kind → its one word."""

    words: tuple[str, ...]
    facts: dict[int, str]


def draw(rng: random.Random, *, tokens: int, facts: int = FACTS) -> Context:
    """`tokens` words with `facts` facts at random places."""
    count = min(facts, tokens)
    kinds = rng.sample(range(KINDS), count)
    words = [f"o{rng.randrange(FILLERS):02}" for _ in range(tokens)]
    found = {kind: f"f{kind:02}{rng.randrange(VALUES):02}" for kind in kinds}
    for place, kind in zip(rng.sample(range(tokens), count), kinds, strict=True):
        words[place] = found[kind]
    return Context(tuple(words), found)


def kind_word(kind: int) -> str:
    """How a question names a kind."""
    return f"kind{kind:02}"


def question(kind: int) -> tuple[str, str]:
    """The words of a question."""
    return ("find", kind_word(kind))


def rows(seed: int, *, words: int = TRAINED, count: int = ROWS) -> Iterator[dict[str, Any]]:
    """Training rows with every kind of rejected answer; the protocol's methods take theirs."""
    rng = random.Random(derive_seed(seed, "find", "rows"))
    for number in range(count):
        context = draw(rng, tokens=words)
        kind, other = rng.sample(sorted(context.facts), 2)
        answer = context.facts[kind]
        absent = [word for word in WORDS if word.startswith(f"f{kind:02}") and word != answer]
        chunks = chunked(context.words)
        yield {
            "id": f"find{number}",
            "context": chunks,
            "question": " ".join(question(kind)),
            "short_prompt": next(chunk for chunk in chunks if answer in chunk.split()),
            "chosen": answer,
            "long": context.facts[other],
            "irrelevant": [context.facts[other], rng.choice(absent)],
            "tokens": {"prompt": words + 2 + TEMPLATE, "chosen": 2, "long": 2, "irrelevant": 4},
        }


def chunked(words: tuple[str, ...]) -> list[str]:
    """A context's chunks, each `CHUNK` words."""
    return [" ".join(words[start : start + CHUNK]) for start in range(0, len(words), CHUNK)]


def questions(split: str) -> Iterator[dict[str, Any]]:
    """Held-out (or development) questions of every condition: the same for all cells."""
    for condition, count in QUESTIONS.items():
        rng = random.Random(derive_seed(0, "find", split, condition))
        for _ in range(count):
            # A chunk alone holds one fact in a training context's sense; a longer one its eight.
            context = draw(rng, tokens=LENGTHS[condition], facts=1 if condition == "alone" else FACTS)
            kind = rng.choice(sorted(context.facts))
            yield {
                "prompt": " ".join((*context.words, *question(kind))),
                "answers": [context.facts[kind]],
                "group": condition,
            }
