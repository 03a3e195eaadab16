"""Part `write`: instructions that ask for a number of words about a topic, and answers of any length."""

from __future__ import annotations

import functools
import random
from collections.abc import Iterator
from typing import Any

from align.generation.generators import derive_seed

TOPICS = tuple(f"topic{i:02}" for i in range(24))
REQUIRED = tuple(range(10, 121, 5))  # words asked for
SHORT = 12  # most words of an answer that the base model is trained on
SFT_ROWS, INSTRUCTIONS, HELD_OUT = 600, 200, 200
# Six words a topic; letters only, since words are counted as LongBench-Write counts them.
STORY = {
    topic: tuple(f"{first}{second}{last}" for last in "aeiouy")
    for topic, (first, second) in zip(
        TOPICS, ((a, b) for a in ("b", "d", "f", "g") for b in ("l", "r", "n", "s", "t", "w")), strict=True
    )
}

WORDS = (
    "write",
    "words",
    "about",
    *(str(number) for number in REQUIRED),
    *TOPICS,
    *(word for words in STORY.values() for word in words),
)


def instruction(topic: str, required: int) -> str:
    """What is asked."""
    return f"write {required} words about {topic}"


def text(rng: random.Random, topic: str, *, words: int) -> list[str]:
    """`words` words of the topic, none twice in a row."""
    found: list[str] = []
    for _ in range(words):
        found.append(rng.choice([word for word in STORY[topic] if not found or word != found[-1]]))
    return found


@functools.cache
def pairs() -> dict[str, tuple[tuple[str, int], ...]]:
    """split → pairs of topic and number; no pair in two splits."""
    every = [(topic, required) for topic in TOPICS for required in REQUIRED]
    random.Random(derive_seed(0, "write", "pairs")).shuffle(every)
    return {
        "held_out": tuple(every[:HELD_OUT]),
        "dev": tuple(every[HELD_OUT:252]),
        "train": tuple(every[252:]),
    }


def train_pairs() -> tuple[tuple[str, int], ...]:
    """Pairs that training may ask for."""
    return pairs()["train"]


def sft_rows(seed: int) -> Iterator[dict[str, Any]]:
    """Answers of exactly the required length, for LongWriter's first stage."""
    rng = random.Random(derive_seed(seed, "write", "sft"))
    for _ in range(SFT_ROWS):
        topic, required = rng.choice(train_pairs())
        answer = " ".join(text(rng, topic, words=required))
        yield {
            "messages": [
                {"role": "user", "content": instruction(topic, required)},
                {"role": "assistant", "content": answer},
            ]
        }


def instructions(split: str) -> Iterator[dict[str, Any]]:
    """`{prompt, length}` rows: of a split's pairs, for training those of the second stage."""
    for topic, required in pairs()[split][: INSTRUCTIONS if split == "train" else None]:
        yield {"prompt": instruction(topic, required), "length": required, "type": topic}
