"""What a soft prompt changes about rows that are read: its tokens count towards their length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from align.core.errors import UserError
from align.data.settings import DataSettings, PositionSettings


def less_soft_prompt(
    settings: DataSettings, positions: PositionSettings, adapter: Any
) -> tuple[DataSettings, PositionSettings]:
    """Rows and positions that leave room for the tokens that an adapter puts before each prompt.

    With `data.max_length=8192` and a soft prompt of 20 tokens rows are cut to 8,172.

    Args:
        settings: of the rows, with a length where there is one.
        positions: of their contexts, fitted to the model.
        adapter: see align/adapters/adapter.py; None: all parameters train.

    Raises:
        UserError: nothing is left.
    """
    taken = soft_tokens(adapter)
    if not taken:
        return settings, positions
    if settings.max_length is not None:
        if settings.max_length <= taken:
            raise UserError(
                f"adapter.tokens={taken} leaves nothing of data.max_length={settings.max_length}: take fewer tokens, "
                "or longer rows."
            )
        settings = replace(settings, max_length=settings.max_length - taken)
    placement: Any = positions.placement
    if placement is not None and placement.target_length is not None:
        if placement.target_length <= taken:
            raise UserError(
                f"adapter.tokens={taken} leaves nothing of positions.target_length={placement.target_length}: take "
                "fewer tokens, or higher positions."
            )
        less = replace(placement, target_length=placement.target_length - taken)
        positions = replace(positions, placement=less)
    return settings, positions


def soft_tokens(adapter: Any) -> int:
    """Tokens that an adapter puts before each prompt; None, where all parameters train, puts none."""
    return 0 if adapter is None else int(adapter.soft_tokens)


def soft_prompt_words(adapter: Any) -> list[str]:
    """What is said of rows that begin with a soft prompt; nothing of others."""
    tokens = soft_tokens(adapter)
    if not tokens:
        return []
    return [
        f"Each prompt begins with the {tokens} tokens of the soft prompt, which count towards data.max_length and "
        "positions.target_length: rows without them are so much shorter."
    ]
