"""Finished calls shared among runs: one file a call, named by the full request and the model it went to."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from align.core.files import write_atomically
from align.generation.generators import (
    Completion,
    Generator,
    Request,
    ScoredText,
    TextScorer,
    digest_of,
    stored_completion,
    weights_of,
)

# Part of every key: raise it when a change of the code changes the answers.
VERSION = 2


class CallCache:
    """Completions in a folder. Several processes may use it at once: a file is whole or absent.

    Args:
        folder: made by the first call that is stored.
        identity: of the generator; another model's calls have other names.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self.folder = folder
        self.identity = identity

    def get(self, request: Request) -> Completion | None:
        """The stored completion; None where there is none, or only a damaged file."""
        try:
            stored = json.loads(self._path(request).read_text(encoding="utf-8"))
            completion = stored_completion(stored["completion"])
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None  # not known, or damaged by something else than us: the call is made again
        return completion if stored.get("key") == json.loads(json.dumps(self._key(request))) else None

    def put(self, request: Request, completion: Completion) -> None:
        """Stores a completion; it is on the disk when this returns."""
        values = {"key": self._key(request), "completion": asdict(completion)}
        write_atomically(self._path(request), json.dumps(values) + "\n")

    def _key(self, request: Request) -> dict[str, object]:
        return {"version": VERSION, "model": self.identity, "request": request.content}

    def _path(self, request: Request) -> Path:
        name = digest_of(self._key(request))
        return self.folder / name[:2] / f"{name[2:]}.json"


class CachedGenerator:
    """A generator that asks `inner` only what no run has asked it before.

    Args:
        inner: makes the calls that are not stored.
        folder: `generator.cache`.
    """

    def __init__(self, inner: Generator, folder: Path) -> None:
        self.inner = inner
        self.cache = CallCache(folder, inner.identity)

    @property
    def name(self) -> str:
        """The inner generator's."""
        return self.inner.name

    @property
    def identity(self) -> str:
        """The inner generator's."""
        return self.inner.identity

    @property
    def weights(self) -> str | None:
        """The inner generator's."""
        return weights_of(self.inner)

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        """The inner generator's."""
        return self.inner.waves(openings)

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Stored answers first, as one group; then the inner generator's, each stored as it comes."""
        missing = [request for request in requests if request.digest not in finished]
        known = [(request, found) for request in missing if (found := self.cache.get(request)) is not None]
        if known:
            yield known
        if len(known) == len(missing):
            return
        skip = {*finished, *(request.digest for request, _ in known)}
        for group in self.inner.generate(requests, finished=skip):
            for request, completion in group:
                if request.digest not in skip:
                    self.cache.put(request, completion)
            yield group


class CachedTextScorer(CachedGenerator):
    """The same for a generator that also scores texts; scores are not stored: they cost one forward."""

    def log_probs(self, texts: Sequence[ScoredText]) -> Iterator[tuple[ScoredText, list[float]]]:
        """The inner generator's."""
        assert isinstance(self.inner, TextScorer)
        yield from self.inner.log_probs(texts)


def cached(inner: Generator, folder: str | None) -> Generator:
    """`inner` itself without a folder."""
    if folder is None:
        return inner
    cached_class = CachedTextScorer if isinstance(inner, TextScorer) else CachedGenerator
    return cached_class(inner, Path(folder).expanduser())
