"""Documents as tokens, and stretches of them as the pieces of rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from align.data.encoding import Encoder
from align.data.piece_rows import Piece, piece_of
from align.data.template import Fragment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.documents.loading import Document


@dataclass(frozen=True)
class TokenDocument:
    """A document as tokens: what stands before it, its text, what stands behind it.

    Attributes:
        id: of the document.
        ids: `[n]` int64, all of them.
        head: how many at the beginning are the tokenizer's own.
        tail: and how many at the end.
    """

    id: str
    ids: np.ndarray
    head: int
    tail: int

    def __len__(self) -> int:
        return len(self.ids)


class DocumentTokens:
    """Documents as tokens, made when they are asked for; the last one is kept.

    A document ends with the tokenizer's end-of-text token, where it has one, as under `method=lm`. What its text spells
    of special tokens stays text.

    Args:
        documents: in the order of the run.
        tokenizer: fast.
        start: each begins with what the tokenizer puts before a text.
    """

    def __init__(
        self, documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, *, start: bool
    ) -> None:
        self.documents, self.tokenizer, self.encoder = documents, tokenizer, Encoder(tokenizer)
        self.start = self.encoder.start_ids if start else self.encoder.start_ids[:0]
        end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.end = np.asarray(end, dtype=np.int64)
        self._last: tuple[int, TokenDocument] | None = None

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, place: int) -> TokenDocument:
        if self._last is None or self._last[0] != place:
            document = self.documents[place]
            ids = np.concatenate([self.start, self.text(document.text), self.end])
            self._last = (place, TokenDocument(document.id, ids, len(self.start), len(self.end)))
        return self._last[1]

    def text(self, text: str, *, continues: bool = False) -> np.ndarray:
        """The ids of a text, `[n]`, special tokens in it taken apart; `continues` as in `Encoder.encode`."""
        return self.encoder.encode([Fragment(text, "text")], continues=continues).ids

    def pieces(self, document: TokenDocument, start: int, stop: int, *, continues: bool) -> list[Piece]:
        """The tokens `start` … `stop` of a document as scored pieces, the tokenizer's own ones each by its name.

        Args:
            document: of this run.
            start: the first token.
            stop: the one after the last, beyond `start`.
            continues: something stands before them in their row.
        """
        text = (max(start, document.head), min(stop, len(document) - document.tail))
        before = document.ids[start : min(stop, document.head)]
        behind = document.ids[max(start, len(document) - document.tail) : stop]
        found = [self._named(one) for one in before]
        if text[0] < text[1]:
            own = document.ids[slice(*text)]
            going_on = continues or bool(found)
            found.append(piece_of(own, self.tokenizer, self.encoder, continues=going_on))
        return [*found, *(self._named(one) for one in behind)]

    def opening(self) -> list[Piece]:
        """What the tokenizer puts before a text, as unscored pieces; none where it puts nothing."""
        return [self._named(one, scored=False) for one in self.encoder.start_ids]

    def _named(self, number: np.int64, *, scored: bool = True) -> Piece:
        return Piece(token=str(self.tokenizer.convert_ids_to_tokens(int(number))), scored=scored)


def shuffled(documents: Sequence[Document], seed: int) -> list[Document]:
    """The documents in the run's order, which the seed draws: neighbours in a row are then of unlike sources."""
    order = list(documents)
    random.Random(seed).shuffle(order)
    return order
