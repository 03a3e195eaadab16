"""Document after document of `pipeline=buckets`, from wherever an earlier start has stopped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from align.generation.generators import derive_seed
from align.synthesis.buckets.powers import powers_of
from align.synthesis.token_documents import DocumentTokens

if TYPE_CHECKING:
    from align.synthesis.buckets.pipeline import BucketsPipeline

TOKENS = "tokens in rows"
TOO_SHORT, LEFT = "document too short for a row", "tokens behind a document's last row, or of one too short"


class Work:
    """Where a run stands, and what was counted.

    Args:
        settings: of the pipeline.
        documents: in the run's order.
        seed: of the run; powers of a document are drawn from (seed, its id).

    Attributes:
        place: of the document in hand.
        done: rows of it that are made.
        counts: of rows by their tokens, of tokens, and of what was left out.
    """

    def __init__(self, settings: BucketsPipeline, documents: DocumentTokens, seed: int) -> None:
        self.settings, self.documents, self.seed = settings, documents, seed
        self.place, self.done = 0, 0
        self.counts: Counter[str] = Counter()

    @property
    def state(self) -> dict[str, Any]:
        """All of it, for the disk."""
        return {"place": self.place, "done": self.done, "counts": dict(self.counts)}

    def go_on(self, state: dict[str, Any]) -> None:
        """Takes up what an earlier start has left."""
        self.place, self.done = state["place"], state["done"]
        self.counts = Counter(state["counts"])

    def rows(self, number: int) -> Iterator[dict[str, Any]]:
        """The rows behind the first `number`, each beside its `state`."""
        while self.place < len(self.documents):
            powers, left = self._powers()
            if not self.done:
                self._count(powers, left)
            edges = [0, *accumulate(2**power + 1 for power in powers)]
            for place in range(self.done, len(powers)):
                self.done = place + 1
                yield self._row(powers[place], *edges[place : place + 2])
            self.place, self.done = self.place + 1, 0

    def counted(self) -> dict[str, int]:
        """Tokens, and rows of each length."""
        lengths = map(_rows_of, range(self.settings.min_power, self.settings.max_power + 1))
        return {name: self.counts[name] for name in (TOKENS, *lengths)}

    def lost(self) -> dict[str, int]:
        """What is in no row."""
        return {name: self.counts[name] for name in (TOO_SHORT, LEFT)}

    def _powers(self) -> tuple[list[int], int]:
        document, rng = self.documents[self.place], None
        if self.settings.long == "random":
            rng = np.random.default_rng(derive_seed(self.seed, "buckets", document.id))
        return powers_of(len(document), least=self.settings.min_power, most=self.settings.max_power, rng=rng)

    def _count(self, powers: list[int], left: int) -> None:
        for power in powers:
            self.counts.update({_rows_of(power): 1, TOKENS: 2**power + 1})
        self.counts.update({TOO_SHORT: int(not powers), LEFT: left})

    def _row(self, power: int, start: int, stop: int) -> dict[str, Any]:
        document, settings = self.documents[self.place], self.settings
        pieces = self.documents.pieces(document, start, stop, continues=False)
        return {
            "id": f"{document.id}@{start}",
            "pieces": [piece.as_json() for piece in pieces],
            "document_id": document.id,
            "power": power,
            "tokens": stop - start,
            "start": start,
            "settings": {
                "pipeline": "buckets",
                "seed": self.seed,
                "min_power": settings.min_power,
                "max_power": settings.max_power,
                "long": settings.long,
            },
        }


def _rows_of(power: int) -> str:
    return f"rows of {2**power + 1} tokens"
