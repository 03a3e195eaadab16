"""What the library's own attention costs: a row for each answer, or a mask."""

from __future__ import annotations

import pyarrow.compute as pc

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
