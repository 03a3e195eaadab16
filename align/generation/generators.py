"""What a pipeline asks of a language model, and what any generator answers.

| a pipeline wants | it does |
|---|---|
| many answers | `run_stage(name, requests, workspace)`: one `Completion` a request, in order |
| several samples of one prompt | several requests with the same messages, each a seed of its own (`derive_seed`) |
| prompts that begin alike | nothing: the generator finds the common prefix and reads it once |
| later questions to a text already read | `run_dialogues(name, dialogues, workspace)`: see below |
| log-probs of a given text | `run_scores(name, texts, workspace)`, where `generator` is a `TextScorer` (local only) |

A dialogue is a Python generator: it yields lists of requests, is sent the lists of their completions, and
returns its result. What it yields next may depend on what it was sent, and on nothing else that changes
between two starts. While a dialogue is going on, the local generator keeps what it has read of a long
prefix, so that LongPO's questions to a chunk and their answers read the chunk once:

    def ask(chunk):
        (questions,) = yield [Request(f"{chunk.id}/questions", ...)]
        answers = yield [Request(f"{chunk.id}/answer{i}", ...) for i, q in enumerate(parse(questions.text))]
        return answers

    results = run_dialogues("chunks", [ask(chunk) for chunk in chunks], workspace)

Every finished call is on the disk when the next one starts (`work/<name>.jsonl` of the run, and the folder
`generator.cache` where set, which runs share). A cut answer has `finish == "length"`, a whole one `"stop"`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from align.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.models.settings import ModelSettings


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: smallest set of likeliest tokens with at least this probability, 0 < top_p ≤ 1.
        min_new_tokens: the answer does not end before this many tokens.
        max_new_tokens: it is cut there.
        stop_at: texts whose last token ends an answer too, though never as its first token: `("\\n",)` takes one line.
    """

    temperature: float
    top_p: float
    min_new_tokens: int
    max_new_tokens: int
    stop_at: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1):
            raise UserError(
                f"answers are drawn with a temperature of 0 or more and a top_p in (0, 1], not {self.temperature} and "
                f"{self.top_p}."
            )


class WindowError(UserError):
    """A prompt and its answer do not fit the model's window.

    Args:
        what: which, and by how much.
        cure: what to do about it.
    """

    def __init__(
        self, what: str, cure: str = "lower pipeline.chunk_tokens or pipeline.max_new_tokens"
    ) -> None:
        super().__init__(f"{what}: {cure}.")
        self.what = what


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
        form: `chat`: the messages through the model's chat template; `text`: the one message's content by itself, which
            the model continues (local only).
    """

    id: str
    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    lead: str = ""
    form: Literal["chat", "text"] = "chat"

    @functools.cached_property
    def content(self) -> dict[str, Any]:
        """Everything that decides on the answer, as plain values: all but the name for people."""
        values = asdict(self)
        del values["id"]
        # What most calls do not have is left out of theirs, so that answers of before it are still known.
        if self.form == "chat":
            del values["form"]
        if not self.sampling.stop_at:
            del values["sampling"]["stop_at"]
        return values

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the full request, by which finished calls are recognised."""
        return digest_of(self.content)


@dataclass(frozen=True)
class Completion:
    """What the model said.

    Attributes:
        text: the lead and what follows, without special tokens and surrounding white space; may be empty.
        tokens: number of generated tokens, neither lead nor end token counted.
        finish: `stop` where the model ended by itself, `length` where it was cut at the limit, `broken` where a server
            broke it off for a reason of its own, such as a content filter: then it is no answer.
    """

    text: str
    tokens: int
    finish: Literal["stop", "length", "broken"]


@dataclass(frozen=True)
class ScoredText:
    """A given answer whose log-probs are asked for.

    Attributes:
        id: unique in its stage, for people.
        messages: the prompt.
        answer: scored as text after the generation prompt, with the token that ends it where `end`.
        end: whether the end token is scored too.
    """

    id: str
    messages: tuple[Message, ...]
    answer: str
    end: bool = False

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of all but the name for people."""
        values = asdict(self)
        del values["id"]
        return digest_of(values)


class Generator(Protocol):
    """A language model that answers requests."""

    @property
    def name(self) -> str:
        """The model, as recorded in every row."""

    @property
    def identity(self) -> str:
        """What tells this model from every other in `generator.cache`: same identity, same answers."""

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Answers as they come, in groups to be stored together.

        Args:
            requests: all calls of a stage, those of an earlier start included: what depends on their
                composition (batches) comes out the same after a restart.
            finished: digests of calls already stored. They may be answered again, equally.
        """

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        """Which dialogues go on together, as consecutive ranges; a function of their first requests alone."""


@runtime_checkable
class TextScorer(Protocol):
    """A model that also gives log-probs of text that it is shown."""

    def log_probs(self, texts: Sequence[ScoredText]) -> Iterator[tuple[ScoredText, list[float]]]:
        """Natural log-probs of each answer's tokens, fp32, in the order of `texts`; nothing is divided."""


class GeneratorSettings(Protocol):
    """What the group `generator` instantiates: settings, from which the generator is made."""

    def check(self) -> None:
        """Raises UserError for a value out of range; loads nothing."""

    def open(self, model: ModelSettings, tokenizer: PreTrainedTokenizerBase) -> Generator:
        """The generator; the model itself may be loaded as late as the first call."""


def stored_completion(fields: Mapping[str, Any]) -> Completion:
    """A completion out of a file; KeyError, TypeError or ValueError where it is none."""
    found = Completion(fields["text"], fields["tokens"], fields["finish"])
    if not isinstance(found.text, str) or not isinstance(found.tokens, int):
        raise TypeError("a completion has a text and a number of tokens")
    return found


def weights_of(generator: Generator) -> str | None:
    """What tells the weights and the tokenizer that answer, whatever folder they lie in; None where nobody knows.

    It is the generator's `weights`, where it has them: a server keeps its own to itself.
    """
    return getattr(generator, "weights", None)


def digest_of(content: Any) -> str:
    """SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def derive_seed(seed: int, *names: str) -> int:
    """A seed of 63 bits for one purpose: neighbours' seeds have nothing in common."""
    text = "\x1f".join((str(seed), *names))
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1
