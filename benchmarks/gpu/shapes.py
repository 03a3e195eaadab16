"""Models of real shapes with random weights, made on the device, and rows of random tokens: nothing is downloaded."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from align.data.examples import Answer, TokenizedExample

WINDOW = 2**21  # tokens that a model is said to read


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, as its `config.json` has them."""

    kind: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    def config(self, layers: int | None = None) -> PreTrainedConfig:
        """The configuration, of fewer layers where a number is given."""
        return CONFIG_MAPPING[self.kind](
            num_hidden_layers=layers or self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            tie_word_embeddings=self.tied,
            max_position_embeddings=WINDOW,
            attention_dropout=0.0,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        )

    def parameters(self) -> int:
        """Of the whole model, without biases and norms; a tied head counts once."""
        return int(self.flops()[0] / 2) + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def flops(self, layers: int | None = None) -> tuple[float, float, float]:
        """FLOPs of a forward: of a token in the layers, of a (query, key) pair, and of a scored token in the head.

        A product of a number with a weight is two; a pair costs 4 · heads · D a layer (scores, and their values).
        """
        depth, width = layers or self.layers, self.hidden // self.heads
        attention = 2 * self.hidden * width * (self.heads + self.kv_heads)  # q and o, k and v
        weights = depth * (attention + 3 * self.hidden * self.intermediate)
        return 2.0 * weights, 4.0 * depth * self.heads * width, 2.0 * self.hidden * self.vocabulary


SHAPES = {
    "Qwen2.5-0.5B": Shape("qwen2", 24, 896, 4864, 14, 2, 151936, tied=True),
    "Qwen2.5-1.5B": Shape("qwen2", 28, 1536, 8960, 12, 2, 151936, tied=True),
    "Qwen2.5-7B": Shape("qwen2", 28, 3584, 18944, 28, 4, 152064),
    "Llama-3-8B": Shape("llama", 32, 4096, 14336, 32, 8, 128256),
    "tiny": Shape("qwen2", 2, 64, 128, 4, 2, 512),
}


def build(
    config: PreTrainedConfig, *, dtype: torch.dtype, attention: str, device: torch.device, seed: int = 0
) -> PreTrainedModel:
    """A model with random weights, the same ones for the same seed and device; it trains."""
    torch.manual_seed(seed)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation=attention
        )
    return model.train()


def example(prompt: int, answers: Sequence[int], *, vocabulary: int, seed: int = 0) -> TokenizedExample:
    """One prompt and its answers, of random tokens."""
    random = np.random.default_rng(seed)

    def tokens(count: int) -> Any:
        return random.integers(4, vocabulary, count)

    return TokenizedExample(
        source=f"random:{seed}",
        prompt_ids=tokens(prompt),
        position_ids=np.arange(prompt),
        answers=tuple(Answer(tokens(count), np.ones(count, dtype=bool)) for count in answers),
    )


def pairs(prompt: int, answers: Sequence[int], *, shared: bool) -> float:
    """(query, key) pairs of a full layer: of a shared row, or of a row for each answer.

    A prompt of 10 and answers of 2 and 1: 55 + 21 + 2 = 55 + (11 + 12) + 11 = 89, and (78 + 66) = 144 in two rows.
    """

    def causal(tokens: int) -> int:
        return tokens * (tokens + 1) // 2

    own = [causal(prompt + answer) for answer in answers]
    return float(sum(own) - (len(answers) - 1) * causal(prompt) if shared else sum(own))
