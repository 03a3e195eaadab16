"""A small random copy of the user's architecture, and rows for it: what `align verify` computes with."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig

from align.data.examples import Answer, TokenizedExample
from align.longseq.support import check_supported
from align.models.loading import auto_class, load_config
from align.models.lora import add_lora
from align.models.settings import ModelSettings
from align.models.text_part import attention_by_part, text_config

LAYERS = 2
VOCABULARY = 512


def build_small_copy(settings: ModelSettings, *, attention: str, seed: int) -> Any:
    """Two random layers of the user's architecture in fp32, adapters included; the same weights every time."""
    config = shrink(load_config(settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = auto_class(config).from_config(
            config,
            dtype=torch.float32,
            attn_implementation=attention_by_part(config, attention),
            trust_remote_code=settings.trust_remote_code,
        )
        check_supported(base)
        model = add_lora(base, settings.lora)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # 0 at the start, which would make A's gradient 0
                nn.init.normal_(weight, std=0.1)
    return model.train()


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same heads and widths with few layers, one of each type at least, and a small vocabulary, and no dropout.

    Weights are drawn wider than a fresh checkpoint's, so that attention is far from uniform and an error in
    a mask or a position shows. Of a composite that is done to the text part; the others keep one layer, not run.
    """
    small = copy.deepcopy(config)
    text = text_config(small)
    for name in small.sub_configs:
        other = getattr(small, name, None)
        if other is not None and other is not text:
            _shrink_other(other)
    _shrink_text(text)
    if text is not small:
        text.pad_token_id = 0  # which some put in the place of images before they embed
    return small


def _shrink_other(config: PreTrainedConfig) -> None:
    """One layer of a part that sees or hears, in place."""
    for name in ("num_hidden_layers", "depth", "num_layers", "encoder_layers"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 1)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]


def _shrink_text(config: PreTrainedConfig) -> None:
    """Few layers and a small vocabulary, in place."""
    types = list(getattr(config, "layer_types", None) or ())
    kept = _kept_layers(types)
    others = config.to_dict().get("per_layer_config") or {}  # what single layers have in place of the rest's
    if others:
        config.per_layer_config = None
    changes: dict[str, Any] = {
        "num_hidden_layers": len(kept),
        "vocab_size": VOCABULARY,
        "intermediate_size": min(config.intermediate_size, config.hidden_size),
        "initializer_range": 1.6 / config.hidden_size**0.5,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if types:
        changes["layer_types"] = [types[layer] for layer in kept]
    if getattr(config, "vocab_size_per_layer_input", None):
        changes["vocab_size_per_layer_input"] = VOCABULARY
    changes |= {
        name: 0.0 for name in ("attention_dropout", "resid_pdrop", "embd_pdrop") if hasattr(config, name)
    }
    for name, value in changes.items():
        setattr(config, name, value)
    others = {int(layer): values for layer, values in others.items() if int(layer) in kept}
    if others:
        config.per_layer_config = {kept.index(layer): values for layer, values in others.items()}


def _kept_layers(types: list[str]) -> list[int]:
    """The first layers, and the first of every type: 0 and 5 where five slide before one that does not."""
    kept = [types.index(kind) for kind in dict.fromkeys(types)]
    return sorted((kept + [layer for layer in range(LAYERS) if layer not in kept])[: max(LAYERS, len(kept))])


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
