"""What the suites' tests share: scripted models, and an evaluation around one."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from align.evaluation.suite import Evaluation, ScoredPairs
from align.generation.generators import Completion, Request
from align.generation.stage import Workspace
from align.models.loading import load_causal_lm
from align.models.settings import ModelSettings
from tests.tiny import tiny_tokenizer


class Answers:
    """A model that says what a function makes of the prompt; counts its calls."""

    name = "scripted"

    def __init__(self, say: Callable[[str], str], *, finish: str = "stop") -> None:
        self.say, self.finish, self.asked = say, finish, 0

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        for request in requests:
            if request.digest not in finished:
                self.asked += 1
                text = self.say(request.messages[-1].content)
                yield [(request, Completion(text, len(text.split()), self.finish))]  # type: ignore[arg-type]


def no_pairs(path: str | None) -> ScoredPairs:
    return ScoredPairs(np.zeros((0, 7)), [])


def evaluation(
    output: Path,
    generator: object,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    model: str = "unused",
    score_pairs: Callable[[str | None], ScoredPairs] = no_pairs,
    seed: int = 0,
    weights: str = "these",
) -> Evaluation:
    workspace = Workspace(output, seed, tokenizer or tiny_tokenizer(), generator, Console(file=io.StringIO()))  # type: ignore[arg-type]
    return Evaluation(
        lambda: load_causal_lm(ModelSettings(path=model)), workspace, score_pairs, lambda: weights
    )


def top(**keys: object) -> DictConfig:
    """A command's keys beside its groups."""
    return OmegaConf.create(keys)
