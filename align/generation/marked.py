"""`generator.mark`: a mark behind every request, as models have seen it in training (arXiv 2411.02688)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from align.generation.generators import (
    Completion,
    Generator,
    Message,
    Request,
    ScoredText,
    TextScorer,
    digest_of,
    weights_of,
)
from align.models.extra_tokens import check_extra_tokens


def check_mark(mark: str | None) -> None:
    """Refuses a `generator.mark` that could be no token."""
    if mark is not None:
        check_extra_tokens([mark], key="generator.mark")


class MarkedGenerator:
    """A generator whose last user message ends with a space and the mark: `Who wrote it? [IND]`.

    Requests keep their names and digests for whoever makes them. A text that a model only continues stays as it is.

    Args:
        inner: answers.
        mark: `[IND]`.
    """

    def __init__(self, inner: Generator, mark: str) -> None:
        self.inner = inner
        self.mark = mark

    @property
    def name(self) -> str:
        """The inner generator's."""
        return self.inner.name

    @property
    def identity(self) -> str:
        """The inner generator's with the mark: the same request gets another answer."""
        return digest_of([self.inner.identity, self.mark])

    @property
    def weights(self) -> str | None:
        """The same of the inner generator's weights."""
        weights = weights_of(self.inner)
        return None if weights is None else digest_of([weights, self.mark])

    @property
    def encode(self) -> Any:
        """The inner generator's encoder, where it has one, which counts prompts without the mark."""
        return getattr(self.inner, "encode", None)

    @property
    def template_kwargs(self) -> Any:
        """The inner generator's, where it has any."""
        return getattr(self.inner, "template_kwargs", None)

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        """The inner generator's, of marked requests."""
        return self.inner.waves([[self._marked(request) for request in opening] for opening in openings])

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """The inner generator's answers to the marked requests, each beside the request as it was made."""
        marked = [self._marked(request) for request in requests]
        plain = dict(zip((one.digest for one in marked), requests, strict=True))
        done = {digest for digest, request in plain.items() if request.digest in finished}
        for group in self.inner.generate(marked, finished=done):
            yield [(plain[request.digest], completion) for request, completion in group]

    def _marked(self, request: Request) -> Request:
        if request.form == "text":
            return request
        return replace(request, messages=self._of(request.messages))

    def _of(self, messages: tuple[Message, ...]) -> tuple[Message, ...]:
        last = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        return tuple(
            replace(message, content=f"{message.content} {self.mark}") if i == last else message
            for i, message in enumerate(messages)
        )


class MarkedTextScorer(MarkedGenerator):
    """The same for a generator that also scores texts."""

    def log_probs(self, texts: Sequence[ScoredText]) -> Iterator[tuple[ScoredText, list[float]]]:
        """The inner generator's of marked prompts, each beside the text as it was asked for."""
        assert isinstance(self.inner, TextScorer)
        marked = [replace(text, messages=self._of(text.messages)) for text in texts]
        plain = dict(zip((one.digest for one in marked), texts, strict=True))
        for text, logps in self.inner.log_probs(marked):
            yield plain[text.digest], logps


def with_mark(inner: Generator, mark: str | None) -> Generator:
    """`inner` itself without a mark."""
    if mark is None:
        return inner
    marked_class = MarkedTextScorer if isinstance(inner, TextScorer) else MarkedGenerator
    return marked_class(inner, mark)
