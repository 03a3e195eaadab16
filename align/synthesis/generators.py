"""What a pipeline asks of a language model, and what any generator answers."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from transformers import PreTrainedTokenizerBase

from align.model import ModelSettings


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: smallest set of likeliest tokens with at least this probability, 0 < top_p ≤ 1.
        min_new_tokens: the answer does not end before this many tokens.
        max_new_tokens: it is cut there.
    """

    temperature: float
    top_p: float
    min_new_tokens: int
    max_new_tokens: int


@dataclass(frozen=True)
class Message:
    """One chat message; its content is text and never becomes a special token."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Request:
    """One call of the model.

    Attributes:
        id: unique in its stage, for people: `with/q0/chosen`.
        messages: the prompt; the last one is the user's.
        sampling: how to draw.
        seed: of this call alone, 63 bits: neither its batch nor a restart changes the draw.
        lead: how the answer begins; the model continues it.
    """

    id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    lead: str = ""

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the full request, by which finished calls are recognised."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Completion:
    """What the model said.

    Attributes:
        text: the lead and what follows, without special tokens and surrounding white space; may be empty.
        tokens: number of generated tokens, neither lead nor end token counted.
        finish: `stop` where the model ended by itself, `length` where it was cut.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length"]


class Generator(Protocol):
    """A language model that answers requests."""

    @property
    def name(self) -> str:
        """The model, as recorded in every row."""

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Answers as they come, in groups to be stored together.

        Args:
            requests: all calls of a stage, those of an earlier start included: what depends on their
                composition (batches) comes out the same after a restart.
            finished: digests of calls already stored. They may be answered again, equally.
        """


class GeneratorSettings(Protocol):
    """What the group `generator` instantiates: settings, from which the generator is made."""

    def check(self) -> None:
        """Raises UserError for a value out of range; loads nothing."""

    def open(self, model: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """The generator; the model itself may be loaded as late as the first call."""


def derive_seed(seed: int, *names: str) -> int:
    """A seed of 63 bits for one purpose: neighbours' seeds have nothing in common."""
    text = "\x1f".join((str(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
