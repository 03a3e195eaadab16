"""Setting `smollm2`: SmolLM2-135M-Instruct on Python's language reference, with sentences to be found in it."""

from __future__ import annotations

import bisect
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from align.documents.loading import load_documents
from align.generation.generators import derive_seed
from benchmarks.windows_protocol.arms import DEPTHS, SETTINGS
from benchmarks.windows_protocol.data import condition
from benchmarks.windows_protocol.facts import KINDS, Fact, draw

SETTING = SETTINGS["smollm2"]
AROUND = 128  # tokens of a prompt that are neither hay nor needles: template, question and answer
NEEDLE_TOKENS = 24  # at most
CONTEXTS = {4096: 1, 8192: 1, 12288: 2}  # held-out contexts of each length
DOCUMENTS = 1  # as long as the target, for perplexity by position
HELD_OUT = 0.75  # of the hay's tokens; training rows are cut from the rest
CHUNK = 256  # tokens of a training row's chunk
ROWS = 40  # more than the budget takes
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\s*\n\s*")


@dataclass(frozen=True)
class Hay:
    """A long text and where its tokens begin.

    Attributes:
        text: all of it.
        starts: of each token, in characters.
    """

    text: str
    starts: Sequence[int]

    def cut(self, start: int, tokens: int) -> str:
        """So many tokens from token `start` on; ValueError where there are fewer."""
        if start + tokens >= len(self.starts):
            raise ValueError(
                f"the hay has {len(self.starts)} tokens, and {tokens} from {start} on are asked for"
            )
        return self.text[self.starts[start] : self.starts[start + tokens]]


@cache
def hay() -> Hay:
    """Python's language reference in an order drawn once."""
    from transformers import AutoTokenizer

    from align.models.embedded import embedded_model

    documents = load_documents("embedded")
    random.Random(derive_seed(0, "windows", "hay")).shuffle(documents)
    text = "\n\n".join(document.text for document in documents)
    tokenizer = AutoTokenizer.from_pretrained(embedded_model())
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
    return Hay(text, [start for start, _ in encoded["offset_mapping"]])


def questions(split: str) -> Iterator[dict[str, Any]]:
    """Contexts of each length with a fact of each kind; a context's questions come together: it is read once."""
    taken = 0
    for length, count in CONTEXTS.items():
        for number in range(count):
            rng = random.Random(derive_seed(0, "windows", "smollm2", split, str(length), str(number)))
            size = length - AROUND - len(KINDS) * NEEDLE_TOKENS
            facts = [draw(kind, rng, "held_out") for kind in rng.sample(KINDS, len(KINDS))]
            text = hidden(hay().cut(taken, size), facts)
            # Longer contexts begin anew, each behind the other: those of one length have nothing in common.
            taken = 0 if number == count - 1 else taken + size
            for place, fact in enumerate(facts):
                yield {
                    "prompt": f"{text}\n\n{fact.question}",
                    "answers": [fact.answer],
                    "group": condition(length, DEPTHS[place * len(DEPTHS) // len(facts)]),
                }


def hidden(text: str, facts: Sequence[Fact]) -> str:
    """The text with facts between its sentences, in their order and evenly from its beginning to its end."""
    breaks = [0, *(match.end() for match in SENTENCE.finditer(text)), len(text)]
    parts, before = [], 0
    for number, fact in enumerate(facts):
        wanted = len(text) * number / max(1, len(facts) - 1)
        place = breaks[min(bisect.bisect_left(breaks, wanted), len(breaks) - 1)]
        parts += [text[before:place], f"{fact.sentence} "]
        before = place
    return "".join((*parts, text[before:]))


def documents(split: str) -> Iterator[dict[str, Any]]:
    """Texts as long as the target, behind what the questions' contexts have."""
    del split  # the same text; what is tried with seed 0 decides nothing about it
    size = max(SETTING.lengths)
    first = CONTEXTS[size] * size
    for number in range(DOCUMENTS):
        piece = {"text": hay().cut(first + number * size, size - 1), "scored": True}
        yield {"id": f"document{number}", "pieces": [piece]}


def rows(seed: int) -> Iterator[dict[str, Any]]:
    """Training rows of 2,048 tokens from the rest of the hay: chunks with one fact, its question and answer."""
    rng = random.Random(derive_seed(seed, "windows", "smollm2", "rows"))
    own = hay()
    first, size = int(HELD_OUT * len(own.starts)), SETTING.short - AROUND - NEEDLE_TOKENS
    used = 0
    for number in range(ROWS):
        used += SETTING.short
        if used > SETTING.budget:
            return
        start = rng.randrange(first, len(own.starts) - size - 1)
        chunks = [own.cut(start + place, min(CHUNK, size - place)) for place in range(0, size, CHUNK)]
        place = rng.randrange(len(chunks))
        fact = draw(rng.choice(KINDS), rng, "training")
        chunks[place] = hidden(chunks[place], [fact])
        yield {
            "id": f"row{number}",
            "context": chunks,
            "question": fact.question,
            "chosen": fact.answer,
            "rejected": [],
        }
