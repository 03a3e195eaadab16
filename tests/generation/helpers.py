"""A generator and a workspace small enough for a test, and the death of a process."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from align.generation.generators import Sampling
from align.generation.local_generator import LocalGenerator
from align.generation.stage import Workspace
from tests.tiny import tiny_model, tiny_tokenizer

SAMPLING = Sampling(temperature=0.7, top_p=0.95, min_new_tokens=2, max_new_tokens=8)


class KilledError(Exception):
    """Stands for the death of the process."""


def local_generator(
    *, batch_size: int = 4, tokenizer: PreTrainedTokenizerBase | None = None
) -> LocalGenerator:
    return LocalGenerator(
        load=tiny_model,
        tokenizer=tokenizer or tiny_tokenizer(),
        name="tiny",
        window=4096,
        batch_tokens=2048,
        batch_size=batch_size,
    )


def workspace(output: Path, generator: object, *, seed: int = 1) -> Workspace:
    return Workspace(output, seed, tiny_tokenizer(), generator, Console(file=io.StringIO()))  # type: ignore[arg-type]
