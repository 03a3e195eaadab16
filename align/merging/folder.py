"""What a merged model's folder holds beside its weights: configuration, tokenizer, processor, code, card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

from align.data.rendering import as_parts, content_form
from align.merging.card import use_example
from align.merging.sources import Source
from align.models.loading import auto_class, window_of
from align.models.processor_files import copy_processor

_CONFIG = "config.json"


def write_rest(
    first: Source,
    weights: Path,
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    dtype: str,
) -> None:
    """Configuration, generation settings, tokenizer, processor and code, as the first model has them.

    Args:
        first: the first model.
        weights: the folder of its weights.
        config: its configuration, with the window that the merged model has.
        tokenizer: its tokenizer.
        folder: of the merged model.
        dtype: `stored`, or what the weights are in now.
    """
    content: dict[str, Any] = json.loads((weights / _CONFIG).read_text(encoding="utf-8"))
    for own in (content, content.get("text_config") or {}):
        for key in ("dtype", "torch_dtype"):
            if dtype != "stored" and key in own:
                own[key] = dtype
        if "use_cache" in own:  # training switches it off
            own["use_cache"] = True
        if "max_position_embeddings" in own:
            own["max_position_embeddings"] = window_of(config)
    (folder / _CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    if (weights / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(weights).save_pretrained(folder)
    for code in weights.glob("*.py"):
        shutil.copyfile(code, folder / code.name)
    write_tokenizer(first, tokenizer, folder)


def write_tokenizer(first: Source, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """The tokenizer, and the files of a composite's processor."""
    tokenizer.save_pretrained(folder)
    copy_processor(first.policy.weights, folder)
    if first.is_adapter:
        copy_processor(first.base.path, folder, revision=first.base.revision)


def asked(name: str, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> str:
    """Python for the card that asks the merged model."""
    chat = tokenizer.chat_template is not None
    return use_example(
        name,
        chat=chat,
        loader=auto_class(config).__name__,
        parts=chat and content_form(tokenizer) is as_parts,
    )
