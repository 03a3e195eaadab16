"""Setting `find`: rows, questions by length and depth, and documents whose facts come back again and again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any

from align.generation.generators import derive_seed
from benchmarks.miniature import find
from benchmarks.miniature.files import within_budget
from benchmarks.windows_protocol.arms import DEPTHS, SETTINGS

AROUND = 16  # tokens of a prompt and its answer that are not the context's: template, question, answer; four to spare
QUESTIONS = 100  # at each length and depth
DOCUMENTS = 24  # for perplexity by position
PAUSE = 6  # filler words before each fact of such a document that comes back
TEXT_WORDS = 40  # of the context of a training document, which all its questions follow


def rows(seed: int, kind: str) -> Iterator[dict[str, Any]]:
    """Training rows of `short` or `long`, as many as the budget has room for."""
    setting = SETTINGS["find"]
    words = (setting.short if kind == "short" else setting.long) - AROUND
    made = find.rows(seed, words=words, count=setting.budget // words)
    return within_budget(made, rejected=None, budget=setting.budget)


def texts(seed: int) -> Iterator[dict[str, Any]]:
    """Training documents: a context, then all its questions with their answers; as many tokens as the rows have."""
    rng = random.Random(derive_seed(seed, "windows", "texts"))
    left, number = SETTINGS["find"].budget, 0
    while True:
        context = find.draw(rng, tokens=TEXT_WORDS)
        words = [*context.words, *_asked(rng, context)]
        left -= len(words) + 1  # and the token that ends it
        if left < 0:
            return
        yield {"id": f"text{number}", "text": " ".join(words)}
        number += 1


def _asked(rng: random.Random, context: find.Context) -> list[str]:
    """All kinds of the context in a random order, each with its fact."""
    kinds = rng.sample(sorted(context.facts), len(context.facts))
    return [word for kind in kinds for word in (find.kind_word(kind), context.facts[kind])]


def condition(length: int, depth: float) -> str:
    """The name of a length and a depth: `512/0.25`."""
    return f"{length}/{depth:g}"


def conditions(lengths: Iterable[int]) -> tuple[str, ...]:
    """Those of some lengths, all depths."""
    return tuple(condition(length, depth) for length in lengths for depth in DEPTHS)


def questions(split: str) -> Iterator[dict[str, Any]]:
    """The same for all arms and seeds: one fact of eight is asked for, and stands where the depth says."""
    for length in SETTINGS["find"].lengths:
        for depth in DEPTHS:
            rng = random.Random(derive_seed(0, "windows", split, condition(length, depth)))
            for _ in range(QUESTIONS):
                words, kind, answer = placed(rng, words=length - AROUND, depth=depth)
                yield {
                    "prompt": " ".join((*words, *find.question(kind))),
                    "answers": [answer],
                    "group": condition(length, depth),
                }


def placed(rng: random.Random, *, words: int, depth: float) -> tuple[list[str], int, str]:
    """A context's words, the kind that is asked for and its fact, which stands at the depth: 0 first, 1 last."""
    context = find.draw(rng, tokens=words)
    kind = rng.choice(sorted(context.facts))
    answer = context.facts[kind]
    found = list(context.words)
    found.remove(answer)
    found.insert(round(depth * (words - 1)), answer)
    return found, kind, answer


def documents(split: str) -> Iterator[dict[str, Any]]:
    """Documents of the longest length as pieces: only facts that come back are scored.

    A context with eight facts comes first. Then, behind a few fillers each, its kinds with their facts, all eight in a
    random order and then again: a fact stood last about 64 tokens before, and at first in the context.
    """
    length = SETTINGS["find"].lengths[-1]
    for number in range(DOCUMENTS):
        rng = random.Random(derive_seed(0, "windows", split, "document", str(number)))
        context = find.draw(rng, tokens=find.TRAINED)
        pieces = [{"text": " ".join(context.words), "scored": False}]
        count = len(context.words)
        asked: Iterator[tuple[str, str]] = iter(())
        while count + PAUSE + 2 <= length:
            pair = next(asked, None)
            if pair is None:
                words = _asked(rng, context)
                asked = iter(zip(words[::2], words[1::2], strict=True))
                continue
            fillers = [f"o{rng.randrange(find.FILLERS):02}" for _ in range(PAUSE)]
            pieces += [
                {"text": " ".join((*fillers, pair[0])), "scored": False},
                {"text": pair[1], "scored": True},
            ]
            count += PAUSE + 2
        yield {"id": f"document{number}", "pieces": pieces}
