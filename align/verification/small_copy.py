"""A small random copy of the user's architecture, and rows for it: what `align verify` computes with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from align.data.examples import Answer, TokenizedExample
from align.longseq.support import check_supported
from align.models.loading import load_config
from align.models.lora import add_lora
from align.models.settings import ModelSettings

LAYERS = 2
VOCABULARY = 512


def build_small_copy(settings: ModelSettings, *, attention: str, seed: int) -> Any:
    """A few random layers of the user's architecture in fp32, adapters included; the same weights every time."""
    config = shrink(load_config(settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=settings.trust_remote_code,
        )
        check_supported(base)
        model = add_lora(base, settings.lora)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # 0 at the start, which would make A's gradient 0
                nn.init.normal_(weight, std=0.1)
    return model.train()


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same heads and widths with few layers and a small vocabulary, and no dropout.

    Weights are drawn wider than a fresh checkpoint's, so that attention is far from uniform and an error in
    a mask or a position shows.
    """
    small = copy.deepcopy(config)
    kept = _kept_layers(config)
    changes: dict[str, Any] = {
        "num_hidden_layers": len(kept),
        "vocab_size": VOCABULARY,
        "intermediate_size": min(config.intermediate_size, config.hidden_size),
        "initializer_range": 1.6 / config.hidden_size**0.5,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    changes |= {
        name: [value[layer] for layer in kept]
        for name, value in vars(config).items()
        if isinstance(value, list | tuple) and len(value) == config.num_hidden_layers
    }
    changes |= {
        name: 0.0 for name in ("attention_dropout", "resid_pdrop", "embd_pdrop") if hasattr(config, name)
    }
    for name, value in changes.items():
        setattr(small, name, value)
    return small


def _kept_layers(config: PreTrainedConfig) -> list[int]:
    """The first layers and, where a list of the configuration says of what type each is, the first of every type.

    Of three layers with a state before one with attention, over and over: 0 and 3.
    """
    types = vars(config).get("layer_types") or vars(config).get("layers_block_type")
    if not types:
        return list(range(min(LAYERS, config.num_hidden_layers)))
    first = {types.index(kind) for kind in types}
    others = [layer for layer in range(len(types)) if layer not in first]
    return sorted([*first, *others[: max(0, LAYERS - len(first))]])


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
