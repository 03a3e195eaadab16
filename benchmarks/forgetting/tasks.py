"""The old task and the new one, in the words of the miniature's `find`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from align.generation.generators import derive_seed
from benchmarks.miniature import find, write
from benchmarks.miniature.tiny import chat

NEW = write.WORDS[0]  # the new task's question word; the base has read neither it nor the words for kinds
HELD_OUT = 240
ROWS = 6400  # 400 steps of 16


@dataclass(frozen=True)
class Question:
    """A context with one of its kinds: the kind's word is right, another's wrong."""

    words: tuple[str, ...]
    kind: int
    right: str
    wrong: str

    def prompt(self, task: str) -> list[str]:
        """The words of the old or the new question, as a user's message."""
        asked = find.question(self.kind) if task == "old" else (NEW, write.TOPICS[self.kind])
        return [*self.words, *asked]

    def tokens(self, task: str) -> list[str]:
        """The prompt as the chat template writes it, up to where the answer begins."""
        words, learnt = chat(self.prompt(task), [])
        return words[: len(words) - sum(learnt)]


def draw(rng: random.Random) -> Question:
    """A context of a training context's size."""
    context = find.draw(rng, tokens=find.TRAINED)
    kind, other = rng.sample(sorted(context.facts), 2)
    return Question(context.words, kind, context.facts[kind], context.facts[other])


def held_out() -> list[Question]:
    """The same for all arms and seeds."""
    rng = random.Random(derive_seed(0, "forgetting", "held out"))
    return [draw(rng) for _ in range(HELD_OUT)]


def rows(seed: int) -> Iterator[dict[str, Any]]:
    """Training rows of the new task: `prompt`, `chosen`, `rejected`."""
    rng = random.Random(derive_seed(seed, "forgetting", "rows"))
    for _ in range(ROWS):
        question = draw(rng)
        yield {
            "prompt": " ".join(question.prompt("new")),
            "chosen": question.right,
            "rejected": question.wrong,
        }
