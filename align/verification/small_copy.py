"""A small random copy of the user's architecture, and rows for it: what `align verify` computes with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from align.adapters.adapter import add_adapter
from align.data.examples import Answer, TokenizedExample
from align.longseq.small_model import draw_adapter
from align.longseq.support import check_readable
from align.models.loading import attention_to_load, auto_class, experts_keyword, load_config
from align.models.settings import ModelSettings
from align.models.small import few_layers
from align.models.structure import set_reading

VOCABULARY = 512


def build_small_copy(settings: ModelSettings, *, attention: str | None, seed: int) -> Any:
    """A random layer of every kind that the user's architecture has, two at least, in fp32, adapters included.

    The weights are the same every time, and drawn wider than a fresh checkpoint's, so that attention is far from
    uniform and an error in a mask or a position shows.

    Args:
        settings: group `model`.
        attention: as transformers knows it; None is the library's own that the class supports.
        seed: of the weights.
    """
    config = few_layers(load_config(settings), vocabulary=VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = auto_class(config).from_config(
            config,
            dtype=torch.float32,
            attn_implementation=attention_to_load(config, attention),
            trust_remote_code=settings.trust_remote_code,
            **experts_keyword(settings),
        )
        set_reading(base, settings.attention)
        check_readable(base, settings.attention)
        model = add_adapter(base, settings.adapter and settings.adapter.without_values())
        if settings.adapter is not None:  # what it trains does nothing at its start
            draw_adapter(model)
    return model.train()


def random_examples(
    count: int, *, prompt_tokens: int, answer_tokens: int, seed: int
) -> list[TokenizedExample]:
    """Random prompts of unlike length, each with one chosen and two rejected answers; the same everywhere."""
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        prompt = max(2, prompt_tokens - 5 * (i % 4))
        answers = (answer_tokens - i % 2, max(1, answer_tokens // 2), max(1, answer_tokens // 3))
        examples.append(
            TokenizedExample(
                source=f"random:{i + 1}",
                prompt_ids=rng.integers(0, VOCABULARY, prompt),
                position_ids=np.arange(prompt),
                answers=tuple(
                    Answer(rng.integers(0, VOCABULARY, n), np.ones(n, dtype=bool)) for n in answers
                ),
            )
        )
    return examples
