"""Token ids against the rows of a model's embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from align.data import faults
from align.data.examples import TokenizedExample
from align.data.faults import RowError
from align.models.text_part import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase


def vocabulary_of(config: PreTrainedConfig) -> int | None:
    """Rows of the embedding of a model; None where its configuration does not say."""
    size = getattr(text_config(config), "vocab_size", None)
    return size if isinstance(size, int) else None


def check_ids(
    example: TokenizedExample, vocabulary: int | None, *, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Refuses a row with a token id that the model has no embedding for.

    Args:
        example: a row, its short contexts included.
        vocabulary: rows of the embedding; None refuses negative ids alone.
        tokenizer: that made the ids; None where the row came with them.

    Raises:
        RowError: names the id.
    """
    for ids in _all_ids(example):
        if not len(ids):
            continue
        outside = int(ids.min()) if ids.min() < 0 else int(ids.max())
        if outside >= 0 and (vocabulary is None or outside < vocabulary):
            continue
        if tokenizer is None:
            size = "" if vocabulary is None else f" of {vocabulary}"
            sentence = (
                f"the token id {outside} lies outside the model's vocabulary{size}: the row was tokenised for "
                "another model."
            )
        else:
            token = tokenizer.convert_ids_to_tokens(outside)
            sentence = (
                f"the tokenizer gives {token!r} the id {outside}, and the model's embedding has {vocabulary} rows: "
                "use the tokenizer that belongs to the model."
            )
        raise RowError(example.source, sentence, reason=faults.VOCABULARY)


def _all_ids(example: TokenizedExample) -> Iterator[np.ndarray]:
    yield example.prompt_ids
    for answer in example.answers:
        yield answer.input_ids
    for short in example.short:
        yield from _all_ids(short)
