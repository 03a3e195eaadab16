"""What rows cost: each of them, to share them out evenly, and all where attention is the library's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset

from align.core.errors import UserError
from align.core.readable import counted
from align.data.dataset import PreferenceData
from align.data.totals import column_of, lengths_of
from align.models.settings import LIBRARY, MASKED


def attention_notice(data: PreferenceData, attention: str) -> list[str]:
    """One sentence where the attention is the library's; none where it is ours.

    A prompt of 1,000 tokens with answers of 100 and 50 is 1,150 tokens with a shared prefix, and 2,150 as two rows. A
    mask of the former is 1,150 times 1,150.

    Args:
        data: its training rows count.
        attention: `model.attention`.
    """
    return _NOTICES[attention](data) if attention in _NOTICES else []


def _of_a_mask(data: PreferenceData) -> list[str]:
    longest = int(pc.max(column_of(data.train, "num_tokens")).as_py())
    return [
        f"model.attention=masked has the model compute every pair of a row's tokens and hide what must not be seen: "
        f"{counted(longest * longest, 'pair')} in a mask for the longest prompt with its answers, of {longest} tokens."
    ]


def _of_own_rows(data: PreferenceData) -> list[str]:
    prompts, answers = lengths_of(data.train, "prompt_ids"), column_of(data.train, "num_answers")
    again = int(pc.sum(pc.multiply(prompts, pc.subtract(answers, 1))).as_py())
    shared = int(pc.sum(column_of(data.train, "num_tokens")).as_py())
    return [
        f"model.attention=library reads a row for each answer: {counted(shared + again, 'token')} an epoch, "
        f"{1 + again / shared:.2f} × the {shared} that rows with a shared prompt would take."
    ]


_NOTICES = {LIBRARY: _of_own_rows, MASKED: _of_a_mask}


# ---- the cost of each row

# Of a usual layer of width h, 12·h² parameters and 4·h operations a pair: as much as a token costs in matrix products
# so many pairs of attention cost, times h.
PAIRS_OF_TOKEN = 6


def tokens_of(rows: Any) -> np.ndarray:
    """`[n]` tokens of each row, its prompt once and every answer.

    Raises:
        UserError: the rows are not tokenised here, so that nothing says how long they are.
    """
    if not isinstance(rows, Dataset) or "num_tokens" not in rows.column_names:
        raise UserError(
            "an order of rows reads their lengths, which these rows have not: leave out the data collator, so that "
            "they are tokenised here, or leave out the order, which shuffles them."
        )
    return _integers(column_of(rows, "num_tokens"))


def costs_of(rows: Dataset, balance: str, *, attention: str, hidden: int) -> np.ndarray | None:
    """`[n]` what each row costs a step, in some unit; None for `none`.

    A prompt of 1,000 tokens with answers of 100 and 50 is 1,150 tokens and 656,825 pairs with a shared prefix (500,500
    within the prompt, 105,050 and 51,275 of the answers); a model of width 1,024 does the work of
    1,150 + 656,825 / (6 · 1,024) = 1,256.9 tokens. Short contexts are left out.

    Args:
        rows: tokenised.
        balance: of `align.data.orders.BALANCES`: `tokens` through the layers; `pairs` of a query and a key that it
            sees, as in full attention; `work`, both in tokens' worth.
        attention: as `model.attention`, which says how a row is read.
        hidden: width of the model.
    """
    if balance == "none":
        return None
    tokens, pairs = _READ.get(attention, _shared)(rows)
    costs = {"tokens": tokens, "pairs": pairs, "work": tokens + pairs / (PAIRS_OF_TOKEN * hidden)}
    return costs[balance].astype(np.float64)


def _shared(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and pairs where the answers share their prompt."""
    prompts, answers, row = _lengths(rows)
    behind = answers * prompts[row] + _triangle(answers)
    return tokens_of(rows), _triangle(prompts) + _summed(behind, row, len(rows))


def _own(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The same where each answer is read behind its whole prompt."""
    prompts, answers, row = _lengths(rows)
    whole = prompts[row] + answers
    return _summed(whole, row, len(rows)), _summed(_triangle(whole), row, len(rows))


def _masked(rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The same where a mask shares the prompt: every pair is computed."""
    tokens = tokens_of(rows)
    return tokens, tokens * tokens


_READ: dict[str, Callable[[Dataset], tuple[np.ndarray, np.ndarray]]] = {LIBRARY: _own, MASKED: _masked}


def _lengths(rows: Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`[n]` of the prompts, `[answers]` of all answers, and `[answers]` the row of each."""
    lists = column_of(rows, "answer_lengths")
    row = pc.list_parent_indices(lists).to_numpy()
    return _integers(lengths_of(rows, "prompt_ids")), _integers(pc.list_flatten(lists)), row


def _summed(values: np.ndarray, row: np.ndarray, count: int) -> np.ndarray:
    """`[count]` of each row."""
    return np.bincount(row, weights=values, minlength=count).astype(np.int64)


def _triangle(tokens: np.ndarray) -> np.ndarray:
    """Pairs within a causal stretch: 3 tokens see 1 + 2 + 3."""
    return tokens * (tokens + 1) // 2


def _integers(column: Any) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False).astype(np.int64)
