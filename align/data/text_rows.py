"""Rows of plain text: a document, cut into pieces of `data.max_length` tokens, each a row of its own."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.readable import counted
from align.data import faults
from align.data.columns import Columns
from align.data.examples import Answer, TokenizedExample
from align.data.faults import RowError
from align.data.stored_rows import hash_ids
from align.data.template import Fragment, without_end

if TYPE_CHECKING:
    from align.data.tokens import ExampleTokenizer

TEXT = "text"
# Columns by which another layout is known: beside one of them `text` is no document.
OF_OTHER_LAYOUTS = (
    *("context", "conversations", "prompt", "messages", "instruction", "question"),
    *("chosen", "rejected", "completion"),
)
_AS_PROMPT = (
    "; where it is the prompt of a pair, data.columns={prompt: text, chosen: …, rejected: …} names the three"
)


def is_text(values: Mapping[str, Any]) -> bool:
    """Whether a raw row is a document: it has a column `text` and none of a layout with answers."""
    return TEXT in values and all(values.get(name) is None for name in OF_OTHER_LAYOUTS)


def read_text(columns: Columns, *, require_rejected: bool = False, wants_more: bool = False) -> str:
    """The document of a row, as it stands.

    Args:
        columns: the row.
        require_rejected: the method compares answers, which a document does not have.
        wants_more: the method reads labels or numbers of each answer, which a document does not have either.

    Raises:
        RowError: no text, a blank one, half of a surrogate pair, or more than a text is asked for.
    """
    if TEXT not in columns:
        raise columns.empty(TEXT, "is null")
    text = columns.text(TEXT)
    check_demands(
        columns,
        "a row of text alone",
        require_rejected=require_rejected,
        wants_more=wants_more,
        cure=_AS_PROMPT,
    )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise columns.error(
            f"it is no text: character {error.start + 1} of column {TEXT} is half of a surrogate pair.",
            reason=faults.NOT_TEXT,
        ) from error
    return text


def check_demands(
    columns: Columns, what: str, *, require_rejected: bool, wants_more: bool, cure: str = ""
) -> None:
    """Refuses a document, which `what` names, where a method asks for more; arguments as `read_text`.

    Raises:
        RowError: the method compares answers, or reads numbers of them.
    """
    if require_rejected:
        raise columns.error(
            f"{what} is a document, and preference methods compare answers: method=lm trains on it (in "
            f"`align inspect` require_rejected=false){cure}.",
            reason=faults.NO_REJECTED,
        )
    if wants_more:
        raise columns.error(
            f"{what} is a document, and the method reads a label or numbers of each answer: method=lm trains on "
            "documents.",
            reason=faults.MISSING,
        )


def text_pieces(source: str, text: str, tokenize: ExampleTokenizer) -> list[TokenizedExample]:
    """A document as rows whose answers are its tokens, each of them scored once and none twice.

    The document is what the tokenizer puts before a text (a beginning-of-text token, or nothing), the text and the
    tokenizer's end-of-text token, if it has one. The first of these tokens is not predicted. A piece begins with the
    beginning-of-text token too, and with the last token of the piece before, which it reads and does not predict again:
    with `<s>` and a length of 5 the document `<s> a b c d e </s>` is `<s> | a b c d` and `<s> d | e </s>`.

    Special tokens that the text spells count as such, as in TRL and as in a string prompt; with `data.chat=always` they
    stay text.

    Args:
        source: where the row stands: `books.jsonl:3`; of several pieces the second is `books.jsonl:3 (piece 2 of 7)`.
        text: not blank.
        tokenize: the tokenizer and `data.max_length`; None cuts nothing.

    Raises:
        RowError: no token can be predicted, or `data.max_length` is too small for a piece.
    """
    ids, rendered = _document(text, tokenize)
    start = tokenize.encoder.start_ids
    first, limit = max(1, len(start)), tokenize.settings.max_length
    if len(ids) <= first:
        raise RowError(
            source,
            "its text is one token, and nothing stands before it to predict it by.",
            reason=faults.TOO_SHORT,
        )
    if limit is not None and limit < len(start) + 2:
        raise RowError(
            source,
            f"data.max_length={limit} is too small for pieces of text: a piece has {counted(len(start), 'token')} that "
            f"the tokenizer puts first, one that stands before it and one to predict; set {len(start) + 2} or more.",
            reason=faults.TOO_LONG,
        )
    edges = _edges(len(ids), first=first, head=len(start) + 1, limit=limit)
    document = hash_ids(ids)
    pieces = list(pairwise(edges))
    named = (
        [source]
        if len(pieces) == 1
        else [f"{source} (piece {i} of {len(pieces)})" for i in _from_one(pieces)]
    )
    heads = [ids[:first], *(np.concatenate([start, ids[at - 1 : at]]) for at, _ in pieces[1:])]
    return [
        TokenizedExample(
            source=name,
            prompt_ids=head,
            position_ids=np.arange(len(head), dtype=np.int64),
            answers=(Answer(ids[at:stop], np.ones(stop - at, dtype=bool)),),
            rendered=rendered and number == 1,
            document=document,
            piece=number,
        )
        for number, (name, head, (at, stop)) in enumerate(zip(named, heads, pieces, strict=True), start=1)
    ]


def _document(text: str, tokenize: ExampleTokenizer) -> tuple[np.ndarray, bool]:
    """All tokens of a document, and whether special tokens of its text count."""
    encoder, tokenizer = tokenize.encoder, tokenize.tokenizer
    rendered = tokenize.settings.chat != "always" and encoder.specials.search(text) is not None
    if rendered and tokenizer.eos_token is not None:
        text = without_end(text, str(tokenizer.eos_token))
    ids = encoder.encode([Fragment(text, "template" if rendered else "text")]).ids
    start = encoder.start_ids
    if rendered and np.array_equal(ids[: len(start)], start):
        start = start[:0]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return np.concatenate([start, ids, np.asarray(end, dtype=np.int64)]), rendered


def _edges(length: int, *, first: int, head: int, limit: int | None) -> list[int]:
    """Where the predicted tokens of each piece begin, and where those of the last one end.

    Of 7 tokens with a first prompt of 1, later ones of 2 and a limit of 5: 1, 5, 7.
    """
    if limit is None or length <= limit:
        return [first, length]
    return [first, *range(limit, length, limit - head), length]


def _from_one(items: list[Any]) -> range:
    return range(1, len(items) + 1)
