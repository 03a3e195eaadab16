"""Rows of given lengths, cut from real text: Python's language reference, which every CPython carries."""

from __future__ import annotations

import pydoc_data.topics
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Row:
    """One prompt and its answers as token ids, the chosen answer first."""

    prompt: list[int]
    answers: list[list[int]]

    def sequences(self) -> list[list[int]]:
        """Each answer after the prompt: what any contestant has to read."""
        return [self.prompt + answer for answer in self.answers]

    def to_json(self) -> dict[str, Any]:
        """The row as JSON takes it; `Row(**…)` reads it back."""
        return asdict(self)


def text_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The whole text, about 465 KB, as token ids without special tokens."""
    text = "\n\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items()))
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def cut_row(tokens: list[int], index: int, *, prompt: int, answers: list[int]) -> Row:
    """Row number `index`: the prompt and every answer come from places of their own in the text.

    Args:
        tokens: the text.
        index: rows with other numbers begin elsewhere.
        prompt: its length in tokens.
        answers: the length of each answer in tokens.
    """
    need = prompt + max(answers)
    if len(tokens) < 2 * need:
        raise ValueError(f"the text has {len(tokens)} tokens, a row of {need} needs twice as many")
    starts = [
        (7919 * (index * (1 + len(answers)) + part)) % (len(tokens) - need)
        for part in range(1 + len(answers))
    ]
    pieces = [
        tokens[start : start + length] for start, length in zip(starts, [prompt, *answers], strict=True)
    ]
    return Row(pieces[0], pieces[1:])
