"""Tiny checkpoint folders of many families, each with the chat template that TRL has for it.

A folder has what a user's has: `config.json`, `model.safetensors`, `generation_config.json`, a tokenizer of bytes with
the template's own special tokens, and beside a composite the files of a processor. The architecture is the class's
default made small (`align.models.small`): one layer of each kind, windows of 6 tokens, four experts.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedTokenizerBase

from align.longseq.small_model import draw_wide
from align.models.loading import library_class
from align.models.small import small
from align.models.text_part import is_composite, text_config
from benchmarks.architecture_worker import Architecture
from tests.data.helpers import byte_tokenizer
from tests.data.template_cases import tokenizer_of
from tests.tiny import PROCESSOR_FILES

WORDS = "river stone lamp bread winter seven green under follow quiet paper engine salt door bird"


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        template: of TRL's set; None has ChatML.
        marks: what its layers have, as the tables of docs/architectures.md call it.
        values: of the configuration, over the class's defaults.
        targets: LoRA's, where the default does not fit the model's names.
        reading: settings of the rows, where the template asks for some.
        attention: `model.attention` that trains it.
    """

    template: str | None = None
    marks: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    targets: str | None = None
    reading: tuple[str, ...] = ()
    attention: str = "sdpa"


FAMILIES = {
    "gemma3_text": Family("gemma3", ("window",)),
    "gemma3": Family("gemma3", ("window", "images")),
    "gemma4_text": Family("gemma4", ("window",)),
    "gpt_oss": Family("gptoss", ("window", "sinks", "MoE")),
    "olmo3": Family(None, ("window",)),
    "ministral": Family(None, ("window",)),
    "cohere2": Family("cohere2", ("window",)),
    "exaone4": Family(None, ("window",)),
    "llama4_text": Family(None, ("window", "MoE")),
    "deepseek_v3": Family("deepseekv3", ("MLA", "MoE"), reading=("data.thinking=close",)),
    "glm4_moe_lite": Family("glm4moe", ("MLA", "MoE")),
    "minicpm3": Family(None, ("MLA",)),
    "qwen3_next": Family("qwen3_instruct_2507", ("state", "MoE")),
    "qwen3_5": Family("qwen3_5_think", ("state", "images")),
    "qwen3_5_text": Family("qwen3_5_nothink", ("state",)),
    "qwen3_5_moe": Family("qwen3_6", ("state", "MoE", "images")),
    "kimi_linear": Family(None, ("state", "MLA", "MoE")),
    "nemotron_h": Family("nemotron_3_nano", ("state", "MoE")),
    "granitemoehybrid": Family(
        None, ("state", "MoE"), {"layer_types": ["linear_attention", "full_attention"]}
    ),
    "falcon_h1": Family(None, ("state",)),
    "jamba": Family(None, ("state", "MoE")),
    "minimax": Family(None, ("state", "MoE")),
    "lfm2": Family("lfm2", ("state",), targets="[q_proj,k_proj,v_proj,out_proj]"),
    "olmo_hybrid": Family(None, ("state",)),
    "mixtral": Family(None, ("MoE",)),
    "qwen3_moe": Family("qwen3", ("MoE",)),
    "qwen2_5_vl": Family("qwen2_5_vl", ("images",)),
    "qwen3_vl": Family("qwen3_vl", ("images",)),
    # An index that selects all keys here: among random scores many are equal.
    "glm_moe_dsa": Family("glm4moe", ("MLA", "MoE"), {"index_topk": 2048}, attention="masked"),
    "stablelm": Family(None, attention="masked"),
    "bloom": Family(None, targets="[query_key_value,dense]", attention="library"),
}


def save_family(folder: Path, name: str, *, weights: bool = True, **values: Any) -> None:
    """Writes the checkpoint of one of `FAMILIES`.

    Args:
        folder: is made.
        name: the `model_type`.
        weights: False leaves them out: what a command says before it reads any.
        values: of the text part's configuration, over the small ones.
    """
    family = FAMILIES[name]
    tokenizer = family_tokenizer(family)
    config = family_config(name, tokenizer, **(family.values | values))
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    if is_composite(config):
        for file in PROCESSOR_FILES:
            (folder / file).write_text(json.dumps({"processor_class": "Processor", "of": file}))
    if not weights:
        config.architectures = [library_class(config).__name__]  # type: ignore[union-attr]
        config.save_pretrained(folder)
        return
    model_class: Any = library_class(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
        draw_wide(model)
    model.float().save_pretrained(folder)


def family_tokenizer(family: Family) -> PreTrainedTokenizerBase:
    """Bytes and the special tokens of the template; pads with its end."""
    tokenizer = copy.deepcopy(byte_tokenizer() if family.template is None else tokenizer_of(family.template))
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = 4096
    return tokenizer


def family_config(name: str, tokenizer: PreTrainedTokenizerBase, **values: Any) -> PreTrainedConfig:
    """The small configuration with the tokenizer's vocabulary."""
    config = Architecture(CONFIG_MAPPING[name]).config()
    sizes = ("vocab_size", "vocab_size_per_layer_input")
    for part in (config, text_config(config)):
        for size in sizes:
            if hasattr(part, size):
                setattr(part, size, len(tokenizer))
    config = small(config, keep=sizes)
    text = text_config(config)
    for part in (config, text):
        part.pad_token_id = part.eos_token_id = tokenizer.eos_token_id
        part.bos_token_id = tokenizer.bos_token_id
        part.dtype = "float32"
    for key, value in values.items():
        setattr(text, key, value)
    return config


def make_pairs(path: Path, count: int = 12) -> Path:
    """Rows of a context with a question, a chosen and two rejected answers, and a short prompt, in English words."""
    words = WORDS.split()

    def text(start: int, length: int) -> str:
        return " ".join(words[(start * 7 + i * (start % 5 + 1)) % len(words)] for i in range(length))

    rows = [
        {
            "context": [text(i, 8), text(i + 1, 6)],
            "question": f"What of the {words[i % len(words)]}?",
            "chosen": text(i + 2, 3),
            "rejected": [text(i + 3, 3), text(i + 4, 2)],
            "short_prompt": text(i, 4),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_questions(folder: Path) -> tuple[Path, Path]:
    """Two questions on one context, and a document to read, both in English words."""
    words = WORDS.split()
    context = " ".join(words[i * 3 % len(words)] for i in range(20))
    rows = [{"prompt": f"{context} {end}", "answers": ["stone"]} for end in ("The lamp?", "The bread?")]
    questions, text = folder / "questions.jsonl", folder / "text.txt"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text.write_text(" ".join(words[i * i % len(words)] for i in range(200)))
    return questions, text
