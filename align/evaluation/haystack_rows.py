"""The rows that needles are made of: pairs of keys and values, questions with their passages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from align.core.errors import UserError
from align.evaluation.questions import check_answers

PAIR_COLUMNS = ("ordered_kv_records", "key", "value")
PASSAGE_COLUMNS = ("question", "answers", "ctxs")


def check_pairs(where: str, row: Mapping[str, Any]) -> None:
    """Raises UserError for a row of keys and values that no prompt can be made of."""
    for name in ("key", "value"):
        if not isinstance(row[name], str) or not row[name]:
            raise UserError(f"{where}: `{name}` has to be a text.")
    pairs = row["ordered_kv_records"]
    if not isinstance(pairs, list) or not all(_is_pair(pair) for pair in pairs):
        raise UserError(f"{where}: `ordered_kv_records` has to be a list of [key, value], texts both.")


def check_passages(where: str, row: Mapping[str, Any]) -> None:
    """Raises UserError for a question without its passage, or without an answer that could be found."""
    if not isinstance(row["question"], str) or not row["question"].strip():
        raise UserError(f"{where}: `question` has to be a text.")
    check_answers(row["answers"], where)
    passages = row["ctxs"]
    if not isinstance(passages, list) or not passages or not _is_passage(passages[0]):
        raise UserError(
            f"{where}: `ctxs` has to be a list whose first entry is the question's own passage, `title` and `text`, "
            "texts both."
        )


def _is_pair(pair: Any) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)


def _is_passage(passage: Any) -> bool:
    return isinstance(passage, Mapping) and all(
        isinstance(passage.get(name), str) for name in ("title", "text")
    )
