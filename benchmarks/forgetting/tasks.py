"""The old task and the new one, in the words of the miniature's `find`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from align.generation.generators import derive_seed
from benchmarks.miniature import find
from benchmarks.miniature.tiny import chat

MOVED = find.KINDS // 2  # kinds below it have the new task; the others keep the old one
HELD_OUT = 240
ROWS = 3200  # 200 steps of 16


@dataclass(frozen=True)
class Question:
    """A context with one of its kinds: one word is right, another's wrong."""

    words: tuple[str, ...]
    kind: int
    right: str
    wrong: str

    @property
    def prompt(self) -> list[str]:
        """The words of the user's message."""
        return [*self.words, *find.question(self.kind)]

    @property
    def tokens(self) -> list[str]:
        """The prompt as the chat template writes it, up to where the answer begins."""
        words, learnt = chat(self.prompt, [])
        return words[: len(words) - sum(learnt)]


def draw(rng: random.Random, task: str) -> Question:
    """A context of a training context's size, and a question of the old task or of the new one."""
    while True:
        context = find.draw(rng, tokens=find.TRAINED)
        kind = rng.choice(sorted(context.facts))
        following = (kind + 1) % find.KINDS
        if (kind < MOVED) != (task == "new") or following not in context.facts:
            continue
        own, other = context.facts[kind], context.facts[following]
        right, wrong = (other, own) if task == "new" else (own, other)
        return Question(context.words, kind, right, wrong)


def held_out(task: str) -> list[Question]:
    """The same for all arms and seeds."""
    rng = random.Random(derive_seed(0, "forgetting", "held out", task))
    return [draw(rng, task) for _ in range(HELD_OUT)]


def rows(seed: int) -> Iterator[dict[str, Any]]:
    """Training rows of the new task: `prompt`, `chosen`, `rejected`."""
    rng = random.Random(derive_seed(seed, "forgetting", "rows"))
    for _ in range(ROWS):
        question = draw(rng, "new")
        yield {
            "prompt": " ".join(question.prompt),
            "chosen": question.right,
            "rejected": question.wrong,
        }
