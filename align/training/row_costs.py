"""What `model.attention=library` costs: how many tokens rows of their own are, beside rows that share their prompt."""

from __future__ import annotations

import pyarrow.compute as pc

from align.core.readable import counted
from align.data.dataset import PreferenceData
from align.data.totals import column_of, lengths_of
from align.models.settings import LIBRARY


def own_rows_notice(data: PreferenceData, attention: str) -> list[str]:
    """One sentence where each answer is read behind its whole prompt; none where answers share it.

    A prompt of 1,000 tokens with answers of 100 and 50 is 1,150 tokens with a shared prefix, and 2,150 as two rows.

    Args:
        data: its training rows count.
        attention: `model.attention`.
    """
    if attention != LIBRARY:
        return []
    prompts, answers = lengths_of(data.train, "prompt_ids"), column_of(data.train, "num_answers")
    again = int(pc.sum(pc.multiply(prompts, pc.subtract(answers, 1))).as_py())
    shared = int(pc.sum(column_of(data.train, "num_tokens")).as_py())
    return [
        f"model.attention=library reads a row for each answer: {counted(shared + again, 'token')} an epoch, "
        f"{1 + again / shared:.2f} × the {shared} that rows with a shared prompt would take."
    ]
