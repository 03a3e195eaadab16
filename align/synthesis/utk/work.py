"""Row after row of `pipeline=utk`, from wherever an earlier start has stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.errors import UserError
from align.generation.generators import derive_seed
from align.synthesis.token_documents import DocumentTokens
from align.synthesis.utk.filling import Knots, Part, fill, whole
from align.synthesis.utk.knots import is_knotted
from align.synthesis.utk.rows import knotted_pieces, plain_pieces

if TYPE_CHECKING:
    from align.synthesis.utk.pipeline import UtkPipeline

TOO_FEW = "tokens at the end, too few for a row"


class Work:
    """Where a run stands: the next document and token, and what was counted.

    Args:
        settings: of the pipeline.
        documents: in the run's order.
        seed: of the run; row i draws from (seed, i).

    Attributes:
        place: of the document that the next row begins with.
        offset: and of its token.
        counts: of rows, tokens and pieces so far.
    """

    def __init__(self, settings: UtkPipeline, documents: DocumentTokens, seed: int) -> None:
        self.settings, self.documents, self.seed = settings, documents, seed
        self.place, self.offset = 0, 0
        self.counts: Counter[str] = Counter()
        self.opening = len(documents.opening())

    @property
    def state(self) -> dict[str, Any]:
        """All of it, for the disk."""
        return {"place": self.place, "offset": self.offset, "counts": dict(self.counts)}

    def go_on(self, state: dict[str, Any]) -> None:
        """Takes up what an earlier start has left."""
        self.place, self.offset = state["place"], state["offset"]
        self.counts = Counter(state["counts"])

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows from `number` on, each beside its `state`."""
        limit = self.settings.rows
        while self.place < len(self.documents) and (limit is None or number < limit):
            row = self._row(number)
            if row is not None:
                yield row
            number += 1

    def _row(self, number: int) -> dict[str, Any] | None:
        """Row `number`; None where the documents end with a token that nothing stands before."""
        settings = self.settings
        knots = self._knots(number) if is_knotted(number, settings.share) else None
        room = settings.row_tokens - self.opening
        parts = fill(self.documents, self.place, self.offset, room, whole if knots is None else knots)
        if not parts:
            raise UserError(
                f"pipeline.row_tokens={settings.row_tokens} leaves no room for a document with its label: raise it."
            )
        self._advance(parts)
        tokens, scored = self._measured(parts, knots)
        if not scored:
            self.counts[TOO_FEW] += tokens
            return None
        if knots is None:
            pieces = plain_pieces(self.documents, parts)
        else:
            permutation = knots.rng.permutation(sum(part.pieces for part in parts))
            pieces = knotted_pieces(
                self.documents, parts, permutation.tolist(), settings.marks, order=settings.order
            )
        self.counts.update(
            {
                f"rows {'packed plainly' if knots is None else 'knotted'}": 1,
                "tokens in rows": tokens,
                "scored tokens": scored,
                "pieces of documents": sum(part.pieces for part in parts),
            }
        )
        return {
            "id": f"utk-{number:06}",
            "pieces": [piece.as_json() for piece in pieces],
            "knotted": knots is not None,
            "tokens": tokens,
            "documents": [_described(part) for part in parts],
            "settings": self._described(),
        }

    def _knots(self, number: int) -> Knots:
        settings = self.settings
        return Knots(
            odds=list(settings.pieces),
            min_split=settings.min_split,
            backtrace=settings.backtrace,
            length_of=lambda label: len(self.documents.text(label, continues=True)),
            rng=np.random.default_rng(derive_seed(self.seed, "utk", str(number))),
        )

    def _advance(self, parts: Sequence[Part]) -> None:
        last = parts[-1]
        if last.stop < len(last.document):
            self.place, self.offset = last.place, last.stop
            self.counts["documents cut at a row's end, with which the next row goes on"] += 1
        else:
            self.place, self.offset = last.place + 1, 0

    def _measured(self, parts: Sequence[Part], knots: Knots | None) -> tuple[int, int]:
        """Tokens of a row, and how many of them the loss is on: documents' and lists', but never the row's first."""
        text = sum(part.edges[-1] for part in parts)
        tokens, scored = self.opening + text, text
        if knots is not None:
            for part in parts:
                labels = sum(map(knots.length_of, part.labels))
                tokens += knots.marks(part.pieces, labels)
                if part.labels and part.pieces > 1:
                    scored += labels + part.pieces
        begins_with_text = not self.opening and not (knots is not None and knots.backtrace)
        return tokens, scored - begins_with_text

    def _described(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "pipeline": "utk",
            "seed": self.seed,
            "row_tokens": settings.row_tokens,
            "share": settings.share,
            "order": settings.order,
            "backtrace": settings.backtrace,
        }


def _described(part: Part) -> dict[str, Any]:
    """What a row holds of a document: its tokens `start` … `stop`, and in how many pieces."""
    return {"id": part.document.id, "start": part.start, "stop": part.stop, "pieces": part.pieces}
