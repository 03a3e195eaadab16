"""A tokenizer of bytes, on which spans can be checked to the character, and writers of small files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.tiny import CHAT_TEMPLATE

START, END = "<|im_start|>", "<|im_end|>"


def byte_tokenizer(
    chat_template: str | None = CHAT_TEMPLATE, *, special: Sequence[str] = (START,), end: str = END
) -> PreTrainedTokenizerFast:
    """Every byte is a token, so decoding gives the text back; `special` and `end`, which is eos, are one each."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=end,
        additional_special_tokens=list(special),
        chat_template=chat_template,
    )


def write_lines(path: Path, *rows: Any) -> str:
    """`path` with one JSON value a line."""
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)
