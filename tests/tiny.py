"""Tiny random models and a word tokenizer: what the tests run instead of a download.

from tests.tiny import tiny_model, tiny_tokenizer

model = tiny_model("qwen3")                 # 2 layers, hidden 64, 4 heads, 2 kv heads, fp32
tokenizer = tiny_tokenizer()                # 128 words, ChatML template, eos <|im_end|>
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY_SIZE = 128
SPECIAL_TOKENS = ("<|pad|>", "<|unk|>", "<|im_start|>", "<|im_end|>")
WORDS = ("system", "user", "assistant", "\n")

# As ChatML is written everywhere: one block a message, each ended by <|im_end|> and a line break.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

KINDS = ("llama", "qwen2", "qwen3", "mistral", "phi3")

# Composites of text and images → their text part's and their vision part's `model_type`.
COMPOSITES = {
    "gemma3": ("gemma3_text", "siglip_vision_model"),
    "gemma4": ("gemma4_text", "gemma4_vision"),
    "mistral3": ("mistral", "pixtral"),
    "llava": ("llama", "clip_vision_model"),
    "qwen2_5_vl": ("qwen2_5_vl_text", "qwen2_5_vl"),
    "qwen3_vl": ("qwen3_vl_text", "qwen3_vl"),
    "glm4v": ("glm4v_text", "glm4v_vision"),
    "internvl": ("qwen2", "internvl_vision"),
}
_VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "depth": 1,
    "num_heads": 2,
    "num_attention_heads": 2,
    "head_dim": 16,
    "image_size": 28,
    "patch_size": 14,
    "out_hidden_size": 64,
    "deepstack_visual_indexes": [0],
    "fullatt_block_indexes": [0],
    "num_position_embeddings": 16,
}
# As a processor leaves them beside a tokenizer's; nothing of ours reads them.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def tiny_model(kind: str = "llama", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A two-layer random causal model of one of `KINDS`, fp32, in eval mode, no dropout.

    Weights are drawn wider than a fresh checkpoint's (0.2 against 0.02), so that attention is far from
    uniform and an error in a mask or a position shows.

    Args:
        kind: the `model_type` of transformers.
        seed: fixes the weights.
        overrides: keys of the model's configuration, e.g. `num_hidden_layers=1`, `sliding_window=8`.
    """
    settings = _text_settings()
    if kind == "mistral":
        settings["sliding_window"] = None
    return _random_model(AutoModelForCausalLM, CONFIG_MAPPING[kind](**(settings | overrides)), seed)


def tiny_composite(kind: str, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """The same with a small vision tower and its projector beside: one of `COMPOSITES`.

    Args:
        kind, seed: as `tiny_model`'s.
        overrides: keys of the text part's configuration.
    """
    text_type, vision_type = COMPOSITES[kind]
    text = {"model_type": text_type, **_text_settings()}
    if "qwen" in kind or "glm" in kind:  # a head's 8 frequencies, or 4 of them, by time, height and width
        sections = [2, 1, 1] if "glm" in kind else [4, 2, 2]
        text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
        text["rope_parameters"] |= {"partial_rotary_factor": 0.5} if "glm" in kind else {}
    if kind in ("mistral3", "gemma3", "gemma4"):
        text["sliding_window"] = None if kind == "mistral3" else 4096
    if kind == "gemma4":  # heads of another width in the layer that does not slide
        text |= {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 32}
        text |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY_SIZE}
    config = CONFIG_MAPPING[kind](
        text_config=text | overrides,
        vision_config={"model_type": vision_type, "initializer_range": 0.2, **_VISION},
        tie_word_embeddings=overrides.get("tie_word_embeddings", False),
    )
    return _random_model(AutoModelForImageTextToText, config, seed)


def _text_settings() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "attention_dropout": 0.0,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": 3,
    }


def _random_model(door: Any, config: Any, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = door.from_config(config, dtype=torch.float32)
    return model.eval()


def save_tiny(folder: Path, kind: str = "llama", **overrides: Any) -> None:
    """A model folder as a user has one: a tiny model, its weights drawn a little narrower, and the tokenizer.

    Args:
        folder: is made.
        kind, overrides: as `tiny_model`'s.
    """
    tiny_model(kind, **({"initializer_range": 0.1} | overrides)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


def save_tiny_composite(folder: Path, kind: str, **overrides: Any) -> None:
    """A composite's folder: as `save_tiny`, with the files of a processor.

    Args:
        folder: is made.
        kind, overrides: as `tiny_composite`'s.
    """
    tiny_composite(kind, **({"initializer_range": 0.1} | overrides)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    for name in PROCESSOR_FILES:
        (folder / name).write_text(json.dumps({"processor_class": "Processor", "of": name}))


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of 128 words, `w8` … `w127` beside the special tokens and the roles; one word, one token.

    A line break is a token of its own; spaces only separate. eos is `<|im_end|>` (3), pad `<|pad|>` (0).
    """
    names = [*SPECIAL_TOKENS, *WORDS]
    names += [f"w{i}" for i in range(len(names), VOCABULARY_SIZE)]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", behavior="isolated"), pre_tokenizers.Split(" ", behavior="removed")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
    )
