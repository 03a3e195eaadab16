"""What a user should know about the rows that were read, a sentence each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from align.core.readable import counted
from align.data.settings import DataSettings
from align.data.template_file import writes_date

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def remarks(
    settings: DataSettings, tokenizer: PreTrainedTokenizerBase, counts: Mapping[str, int]
) -> Iterator[str]:
    """What was left out of the rows, and what they hold that changes from day to day.

    Args:
        settings: with the date of the rows.
        tokenizer: its chat template may write the date.
        counts: of `PreferenceData`.
    """
    if settings.chat != "never" and writes_date(settings.template_source() or tokenizer.chat_template):
        yield (
            f"The chat template writes the date into prompts: data.date={settings.today()} gives the same prompts on "
            "another day."
        )
    if counts["dropped_reasoning"]:
        yield f"The reasoning of {counted(counts['dropped_reasoning'], 'answer')} was left out (data.thinking=drop)."
    if counts["dropped_messages"]:
        yield (
            "Left out behind the last answers of rows, where nobody answers: "
            f"{counted(counts['dropped_messages'], 'message')}."
        )
