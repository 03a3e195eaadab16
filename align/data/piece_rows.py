"""Rows of pieces: a text whose parts are scored or read alone, token by token as a pipeline laid them out."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.readable import counted
from align.data import faults
from align.data.columns import Columns
from align.data.contents import as_text, kind
from align.data.examples import Answer, TokenizedExample
from align.data.faults import RowError
from align.data.stored_rows import hash_ids
from align.data.template import Fragment
from align.data.text_rows import OF_OTHER_LAYOUTS, TEXT, check_demands

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.data.encoding import Encoder
    from align.data.tokens import ExampleTokenizer

PIECES, DOCUMENT = "pieces", "document_id"
_KEYS = ("text", "token", "ids", "scored")


@dataclass(frozen=True)
class Piece:
    """A part of a row. One of the three kinds is set, but for the text beside ids, which says what they read as.

    Attributes:
        text: encoded by itself; what looks like a special token in it stays text.
        token: one token of the tokenizer, special or not, by its name.
        ids: token ids as they stand, for what no text gives (half a character, or half a word).
        scored: whether its tokens are predicted in the loss; they are read in any case.
    """

    text: str | None = None
    token: str | None = None
    ids: tuple[int, ...] | None = None
    scored: bool = True

    def as_json(self) -> dict[str, Any]:
        """As a row has it."""
        values: dict[str, Any] = {"text": self.text, "token": self.token}
        kept = {name: value for name, value in values.items() if value is not None}
        return kept | ({} if self.ids is None else {"ids": list(self.ids)}) | {"scored": self.scored}


def is_pieces(values: Mapping[str, Any]) -> bool:
    """Whether a raw row is one of pieces: it has a column `pieces`, and none of a layout with a text or answers."""
    others = (TEXT, *OF_OTHER_LAYOUTS)
    return values.get(PIECES) is not None and all(values.get(name) is None for name in others)


def read_pieces(
    columns: Columns, *, require_rejected: bool = False, wants_more: bool = False
) -> tuple[list[Piece], str | None]:
    """The pieces of a row, and the document that it belongs to, where it names one; arguments as `read_text`.

    Raises:
        RowError: no list of pieces, one of no kind or of two, or more than a text is asked for.
    """
    values = columns.value(PIECES)
    if not isinstance(values, list) or not values:
        raise columns.wrong_type(PIECES, "a list of pieces")
    check_demands(columns, "a row of pieces", require_rejected=require_rejected, wants_more=wants_more)
    document = columns.optional_text(DOCUMENT)
    return [_piece(columns, place, value) for place, value in enumerate(values, start=1)], document


def piece_row(
    source: str, pieces: list[Piece], tokenize: ExampleTokenizer, *, document: str | None = None
) -> TokenizedExample:
    """The row as tokens: those of its pieces one after the other, and nothing before, between or behind them.

    Each piece is encoded by itself, so that no token spans two of them and each is scored or not as its piece says:
    of `[{"token": "<|t_1|>", "scored": false}, {"text": "b c"}]` with the ids 9 and 3 4 the row is 9 3 4, and 3 and 4
    are scored. The first token is not predicted, whatever its piece says. A row is never cut, since its parts may refer
    to each other.

    Args:
        source: where the row stands.
        pieces: at least one.
        tokenize: the tokenizer and `data.max_length`.
        document: rows of one document stay on one side of the held-out split; None: the row is one by itself.

    Raises:
        RowError: a token that the tokenizer lacks, ids that read as something else than their text says, a row of more
            than `data.max_length` tokens, or one in which nothing is predicted.
    """
    tokens = [
        _ids(source, place, piece, tokenize, continues=place > 1)
        for place, piece in enumerate(pieces, start=1)
    ]
    ids = np.concatenate(tokens)
    scored = np.repeat([piece.scored for piece in pieces], [len(own) for own in tokens])
    limit = tokenize.settings.max_length
    if limit is not None and len(ids) > limit:
        raise RowError(
            source,
            f"its pieces have {counted(len(ids), 'token')} and are not cut, since they may refer to each other; that "
            f"is more than data.max_length={limit}: raise it or leave the row out.",
            reason=faults.TOO_LONG,
        )
    if not scored[1:].any():
        raise RowError(
            source,
            "no token of its pieces is predicted: none behind the first token is scored.",
            reason=faults.TOO_SHORT,
        )
    name = np.frombuffer(document.encode("utf-8"), dtype=np.uint8) if document else ids
    return TokenizedExample(
        source=source,
        prompt_ids=ids[:1],
        position_ids=np.zeros(1, dtype=np.int64),
        answers=(Answer(ids[1:], scored[1:]),),
        document=hash_ids(name),
        pieces=len(pieces),
    )


def piece_of(
    ids: np.ndarray, tokenizer: PreTrainedTokenizerBase, encoder: Encoder, *, continues: bool
) -> Piece:
    """The scored piece that gives exactly these ids: a text where it does, else the ids beside what they read as.

    Of a word's second half alone, and of half a character, no text gives the tokens that they were in their document.

    Args:
        ids: `[n]`, n ≥ 1.
        tokenizer: fast.
        encoder: of the tokenizer.
        continues: the piece is not the first of its row.
    """
    text = read_ids(tokenizer, ids)
    if np.array_equal(_encoded(encoder, text, continues=continues), ids):
        return Piece(text=text)
    return Piece(text=text, ids=tuple(int(one) for one in ids))


def read_ids(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> str:
    """The text that ids read as, special tokens by their names."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def token_id(tokenizer: PreTrainedTokenizerBase, name: str) -> int | None:
    """The id of the token of this name; None where the tokenizer has none."""
    found = tokenizer.convert_tokens_to_ids(name)
    unknown = found is None or (found == tokenizer.unk_token_id and name != tokenizer.unk_token)
    return None if unknown or isinstance(found, list) else int(found)


def lacking(names: list[str]) -> str:
    """What is said of tokens that a tokenizer lacks: how the model gets them."""
    named = ",".join(f'"{name}"' for name in names)
    return f"the tokenizer lacks {', '.join(names)}: model.extra_tokens='[{named}]' adds that"


def _encoded(encoder: Encoder, text: str, *, continues: bool) -> np.ndarray:
    return encoder.encode([Fragment(text, "text")], continues=continues).ids


def _ids(source: str, place: int, piece: Piece, tokenize: ExampleTokenizer, *, continues: bool) -> np.ndarray:
    """The tokens of one piece, `[n]`."""
    tokenizer = tokenize.tokenizer
    if piece.token is not None:
        found = token_id(tokenizer, piece.token)
        if found is None:
            raise RowError(source, f"piece {place}: {lacking([piece.token])}.", reason=faults.VOCABULARY)
        return np.asarray([found], dtype=np.int64)
    if piece.ids is None:
        return _encoded(tokenize.encoder, piece.text or "", continues=continues)
    ids = np.asarray(piece.ids, dtype=np.int64)
    if ids.max() >= len(tokenizer):
        raise RowError(
            source,
            f"piece {place} has the id {ids.max()}, and the tokenizer ends at {len(tokenizer) - 1}: name the model "
            "that the row is for.",
            reason=faults.VOCABULARY,
        )
    read = piece.text if piece.text is None else read_ids(tokenizer, ids)
    if read != piece.text:
        raise RowError(
            source,
            f"the ids of piece {place} read as {reprlib.repr(read)} with this tokenizer and as "
            f"{reprlib.repr(piece.text)} in the row, which another tokenizer has made: name the model that it is for.",
            reason=faults.VOCABULARY,
        )
    return ids


def _piece(columns: Columns, place: int, value: Any) -> Piece:
    """One piece, checked; keys that are null count as absent, as Parquet fills them in."""
    if not isinstance(value, Mapping):
        raise columns.error(
            f"piece {place} is {kind(value)}: a piece has text, token or ids, and scored.",
            reason=faults.WRONG_TYPE,
        )
    found = {name: as_text(own) for name, own in value.items() if own is not None}
    unknown = sorted(set(found) - set(_KEYS))
    if unknown:
        raise columns.error(
            f"piece {place} has the key {unknown[0]!r}, which is not read: a piece has {', '.join(_KEYS)}.",
            reason=faults.UNKNOWN_LAYOUT,
        )
    kinds = [name for name in ("text", "token", "ids") if name in found]
    if kinds not in (["text"], ["token"], ["ids"], ["text", "ids"]):
        raise columns.error(
            f"piece {place} has {' and '.join(kinds) or 'neither text nor token nor ids'}: give one of text, token "
            "and ids (ids may have the text beside them that they read as).",
            reason=faults.UNKNOWN_LAYOUT,
        )
    for name in kinds:
        _check_value(columns, place, name, found[name], may_be_empty=kinds == ["text", "ids"])
    if not isinstance(found.get("scored", True), bool):
        raise columns.error(
            f"piece {place}: scored must be true or false, not {kind(found['scored'])}.",
            reason=faults.WRONG_TYPE,
        )
    ids = tuple(found["ids"]) if "ids" in found else None
    return Piece(found.get("text"), found.get("token"), ids, found.get("scored", True))


def _check_value(columns: Columns, place: int, name: str, value: Any, *, may_be_empty: bool) -> None:
    """Refuses a text that is none or empty (ids may read as nothing), and ids that are none."""
    if name == "ids":
        whole = isinstance(value, list) and all(type(one) is int and 0 <= one < 2**31 for one in value)
        if not whole or not value:
            raise columns.error(
                f"piece {place}: ids must be a list of token ids, whole numbers from 0 on.",
                reason=faults.WRONG_TYPE,
            )
        return
    if not isinstance(value, str):
        raise columns.error(
            f"piece {place}: {name} must be a string, not {kind(value)}.", reason=faults.WRONG_TYPE
        )
    if not value and not may_be_empty:
        raise columns.error(f"piece {place}: {name} is empty.", reason=faults.EMPTY)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise columns.error(
            f"it is no text: character {error.start + 1} of piece {place} is half of a surrogate pair.",
            reason=faults.NOT_TEXT,
        ) from error
