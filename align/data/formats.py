"""Every row layout as an `Example`: TRL's columns, context and question, several turns, ShareGPT, SFT."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from align.data import faults
from align.data.columns import Columns
from align.data.contents import strings_of
from align.data.context_rows import context_row
from align.data.examples import Example
from align.data.implicit_rows import implicit_row
from align.data.instruction_rows import instruction_row
from align.data.labels import check_label
from align.data.near_names import unknown_layout
from align.data.numbers import Number, read_numbers
from align.data.piece_rows import is_pieces
from align.data.sources import RawRow, open_sources, read_rows
from align.data.stored_columns import read_stored
from align.data.text_rows import is_text
from align.data.turns import chat_example, text_example, without_equal
from align.data.unread import unread_names

LAYOUTS = (
    "prompt + chosen + rejected, chosen + rejected (prompt in both), question + chosen + rejected, "
    "context + question + chosen + rejected, context + questions + chosens + rejecteds, "
    "conversations + chosen + rejected, prompt + completion, messages, "
    "context + query + win_response + lose_response (LongReward), "
    "instruction + chosen + rejected or output (alpaca, LongDPO), text (a document, for method=lm), "
    "pieces (text of which parts are scored, for method=lm)"
)


@dataclass(frozen=True)
class ParsedRow:
    """A row as text.

    Attributes:
        example: the row.
        dropped: how many of its rejected answers were left out, since they equal the chosen one.
        unread: its columns that hold something and were not read.
        numbers: `[K, 1 + M]` numbers that the method reads of it; None where it reads none.
        kept: which of its rejected answers were not left out, from 0.
    """

    example: Example
    dropped: int = 0
    unread: tuple[str, ...] = ()
    numbers: np.ndarray | None = None
    kept: tuple[int, ...] = ()


def read_examples(
    path: str, *, require_rejected: bool = False, limit: int | None = None
) -> Iterator[Example]:
    """The rows of `data.path` as text, one after the other (of a data set with splits: the train split).

    Args:
        path: a file, a folder of files, a saved `datasets` folder or a Hub id.
        require_rejected: the method compares answers, so that a row without a rejected one is an error.
        limit: at most this many rows.

    Raises:
        UserError: the path or a row cannot be used; names file and line or row.
    """
    for row in islice(read_rows(open_sources(path).train), limit):
        yield parse_row(row, require_rejected=require_rejected).example


def parse_row(
    row: RawRow,
    *,
    require_rejected: bool = False,
    numbers: Sequence[Number] = (),
    reads: Sequence[str] = (),
) -> ParsedRow:
    """One raw row as an `Example`, whatever its layout.

    Args:
        row: as it was read.
        require_rejected: see `read_examples`.
        numbers: what the method reads of it beside its texts.
        reads: further columns that are read, by somebody else (`token_weights`).

    Raises:
        RowError: it cannot be used.
    """
    columns = Columns(row.source, row.values)
    columns.read.update(reads)
    read_stored(columns)
    example = _read_layout(columns)
    example = replace(example, tools=columns.tools(), template_kwargs=columns.template_kwargs())
    _check_text(columns, example)
    turns, kept = without_equal(example.turns)
    answers = 1 + len(example.turns[0].rejected)
    dropped = answers - 1 - len(kept)
    if dropped and not kept:
        raise columns.error("every rejected answer equals the chosen one.", reason=faults.ALL_EQUAL)
    if not kept:
        if not any(number.kind == "label" for number in numbers):
            check_label(columns)
        if require_rejected:
            raise columns.no_rejected()
    found = read_numbers(columns, numbers, answers=answers, kept=kept) if numbers else None
    unread = tuple(unread_names(columns, row))
    return ParsedRow(replace(example, turns=turns), dropped, unread, found, tuple(kept))


def _check_text(columns: Columns, example: Example) -> None:
    """Refuses half of a surrogate pair, which JSON can spell and no text can hold."""
    held = [
        example.text,
        example.system,
        example.chunks,
        example.messages,
        example.tools,
        example.template_kwargs,
    ]
    for turn in example.turns:
        held += [turn.question, turn.chosen, turn.rejected, turn.short_prompt, turn.fields, turn.asked]
    for text in strings_of(held):
        if text.isascii():
            continue
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise columns.error(
                f"it is no text: character {error.start + 1} of {reprlib.repr(text)} is half of a surrogate pair.",
                reason=faults.NOT_TEXT,
            ) from error


def _read_layout(columns: Columns) -> Example:
    """Picks the layout by the columns that are there."""
    if "context" in columns:
        return context_row(columns)
    if "conversations" in columns:
        return _conversation_row(columns, "conversations")
    if "prompt" in columns:
        return _prompt_row(columns)
    if "messages" in columns:
        return _conversation_row(columns, "messages")
    if "instruction" in columns:
        return instruction_row(columns)
    if "chosen" in columns:
        return implicit_row(columns)
    if is_text(columns.values) or is_pieces(columns.values):
        what = "text" if is_text(columns.values) else "pieces"
        raise columns.error(
            f"a row of {what} alone is a document without a prompt or an answer: `align train method=lm` trains on it.",
            reason=faults.UNKNOWN_LAYOUT,
        )
    raise columns.error(unknown_layout(list(columns.values)), reason=faults.UNKNOWN_LAYOUT)


def _conversation_row(columns: Columns, name: str) -> Example:
    """A conversation: the prompt where `chosen` is there (ranking rows), else the whole of an SFT row."""
    messages = columns.conversation(name)
    if "chosen" in columns:
        answers = [columns.answer("chosen", columns.get("chosen")), *columns.answers("rejected")]
        return chat_example(columns, messages, answers)
    if columns.values.get("rejected") not in (None, "", []):
        raise columns.error(
            f"column rejected stands beside {name} without a column chosen, and is not read: name the better answer "
            "with data.columns={chosen: …}, or hide it with data.columns={rejected: null}.",
            reason=faults.MISSING,
        )
    first = next((i for i, message in enumerate(messages) if message["role"] == "assistant"), None)
    if first is None:
        raise columns.error(
            f"column {name} holds no assistant's message and there is no column chosen.",
            reason=faults.MISSING,
        )
    return chat_example(columns, messages[:first], [messages[first:]])


def _prompt_row(columns: Columns) -> Example:
    """`prompt` with `chosen` and `rejected`, or with `completion`."""
    column = "chosen" if "chosen" in columns else "completion"
    chosen = columns.answer(column, columns.get("chosen", "completion"))
    answers = [chosen, *columns.answers("rejected")]
    if not isinstance(columns.get("prompt"), str):
        return chat_example(columns, columns.conversation("prompt"), answers)
    prompt = columns.text("prompt")
    if chosen[0]["role"] != "assistant":  # TRL: a prompt column beside conversations that hold it too
        if all((message["content"] or "").strip() != prompt.strip() for message in chosen):
            raise columns.error(
                "column prompt is no message of the conversation in chosen, which has a prompt of its own: hide the "
                "column with data.columns={prompt: null}, or give answers alone.",
                reason=faults.MESSAGES,
            )
        return replace(implicit_row(columns), inferred=False)
    if not isinstance(columns.get(column), str):
        return chat_example(columns, [{"role": "user", "content": prompt}], answers)
    return text_example(columns, prompt, answers)
