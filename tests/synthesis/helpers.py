"""A pipeline small enough to run whole in a test: documents of known words, a tiny model, scripted questions."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from omegaconf import OmegaConf

import hydra_conf
from align.documents.loading import Document
from align.generation.generators import Completion, Request, weights_of
from align.generation.local_generator import LocalGenerator
from align.synthesis.logo.pipeline import LogoPipeline
from tests.generation.helpers import KilledError


class Scripted:
    """Asks about the passage's first word itself (a random model asks nothing) and lets `local` answer.

    Args:
        local: answers every request that is no question's.
        groups: raise `KilledError` instead of giving the group after this many; None never does.
    """

    def __init__(self, local: LocalGenerator, *, groups: int | None = None) -> None:
        self.local = local
        self.name = self.identity = "tiny"
        self.weights = weights_of(local)
        self.left = groups

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        return self.local.waves(openings)

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        for group in self._groups(requests, finished):
            if self.left == 0:
                raise KilledError
            if self.left is not None:
                self.left -= 1
            yield group

    def _groups(
        self, requests: Sequence[Request], finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        if requests and "/q/chosen" in requests[0].id:
            yield from self.local.generate(requests, finished=finished)
            return
        for start in range(0, len(requests), 2):
            group = requests[start : start + 2]
            if any(request.digest not in finished for request in group):
                yield [(request, Completion(_question(request), 6, "stop")) for request in group]


def _question(request: Request) -> str:
    words = re.findall(r"w\d+", request.messages[0].content)
    return f"What is {words[0]} or {words[1]}?"


def word_documents(count: int = 4, *, paragraphs: int = 5, seed: int = 0) -> list[Document]:
    """Documents of paragraphs of 12 random words out of w8 … w127."""
    rng = random.Random(seed)
    texts = [
        "\n\n".join(" ".join(f"w{rng.randrange(8, 128)}" for _ in range(12)) for _ in range(paragraphs))
        for _ in range(count)
    ]
    return [Document(f"d{i}", f"words.jsonl:{i + 1}", text) for i, text in enumerate(texts)]


def default_prompts() -> dict[str, str]:
    """The two prompts of hydra_conf/pipeline/logo.yaml."""
    config = OmegaConf.load(Path(hydra_conf.__file__).parent / "pipeline" / "logo.yaml")
    return {key: config[key] for key in ("question_prompt", "answer_prompt")}


def pipeline(**changes: object) -> LogoPipeline:
    settings: dict[str, object] = {
        "chunk_tokens": 16,
        "chunks_per_prompt": 6,
        "critical_chunks": 2,
        "min_new_tokens": 2,
        "max_new_tokens": 8,
        "question_leads": [""],
        **default_prompts(),
    }
    return LogoPipeline(**(settings | changes))  # type: ignore[arg-type]
