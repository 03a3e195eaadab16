"""The columns that layouts of rows have, which `data.columns` may name."""

from __future__ import annotations

from collections.abc import Mapping

from align.core.config import suggestion
from align.core.errors import UserError

# Columns of the layouts, which `data.columns` may name.
LAYOUT_COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "completion",
    "messages",
    "text",
    "pieces",
    "document_id",
    "conversations",
    "context",
    "question",
    "questions",
    "chosens",
    "rejecteds",
    "short_prompt",
    "short_prompts",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "query",
    "answer",
    "win_response",
    "lose_response",
    "label",
    "kto_tag",
    "tools",
    "chat_template_kwargs",
    "images",
    "image",
    "videos",
    "audios",
)


def check_columns(columns: Mapping[str, str | None] | None, key: str) -> None:
    """Refuses names that no layout has, and one column under two names; any column may be hidden."""
    columns = columns or {}
    for ours, name in columns.items():
        if name is not None and ours not in LAYOUT_COLUMNS:
            raise UserError(
                f"{key}.{ours} is no column of a layout{suggestion(ours, LAYOUT_COLUMNS)}: they are "
                f"{', '.join(LAYOUT_COLUMNS)}."
            )
        if not isinstance(columns[ours], str | None):
            raise UserError(
                f"{key}.{ours}={columns[ours]} is no column's name: give a text, or null, which hides the column."
            )
    theirs = [name for name in columns.values() if name is not None]
    twice = next((name for name in theirs if theirs.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{key} gives the rows' column {twice} two names: keep one.")
