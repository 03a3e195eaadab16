"""`pipeline=buckets`: documents → rows of 2^k + 1 tokens (Dataset Decomposition, arXiv 2405.13226)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from align.core.config import check_choice
from align.core.display import progress_bar
from align.core.errors import UserError
from align.documents.loading import Document, load_documents
from align.generation.generators import derive_seed
from align.generation.stage import WORK
from align.synthesis.buckets.powers import LONG, powers_of
from align.synthesis.pipeline import Summary, at_least, write_rows
from align.synthesis.row_log import RowLog, tokenizer_digest
from align.synthesis.token_documents import DocumentTokens, shuffled

if TYPE_CHECKING:
    from align.generation.stage import Workspace

TOKENS = "tokens in rows"
TOO_SHORT, LEFT = "document too short for a row", "tokens behind a document's last row, or of one too short"
MOST = 30  # a row's tokens are counted in 32 bits


@dataclass(frozen=True)
class BucketsPipeline:
    """Group `pipeline`; hydra_conf/pipeline/buckets.yaml comments every key."""

    reads_documents: ClassVar[bool] = True
    uses_generator: ClassVar[bool] = False

    documents: str | None = None
    min_power: int = 8
    max_power: int = 13
    long: str = "largest"

    def check(self) -> None:
        """Raises UserError for a value out of range; reads nothing."""
        check_choice("pipeline.long", self.long, LONG)
        at_least("min_power", self.min_power, 0)
        at_least("max_power", self.max_power, self.min_power)
        if self.max_power > MOST:
            raise UserError(f"pipeline.max_power={self.max_power} is too large: give {MOST} or less.")

    def read(self) -> list[Document]:
        """The documents; raises UserError where there are none."""
        return load_documents(self.documents)

    def run(self, documents: Sequence[Document], workspace: Workspace) -> Summary:
        """Makes the rows; those of an earlier start are kept, and it goes on behind them."""
        ordered = shuffled(documents, derive_seed(workspace.seed, "buckets/order"))
        tokens = DocumentTokens(ordered, workspace.tokenizer, start=True)
        path = workspace.output / WORK / "rows.jsonl"
        with (
            RowLog(path, maker=tokenizer_digest(workspace.tokenizer)) as log,
            progress_bar(workspace.console) as progress,
        ):
            state = log.state or {"place": 0, "rows": 0, "counts": {}, "dropped": {}}
            counts, dropped = Counter(state["counts"]), Counter(state["dropped"])
            task = progress.add_task("documents", total=len(ordered), completed=state["place"])
            for place in range(state["place"], len(ordered)):
                done = state["rows"] if place == state["place"] else 0
                cut = self._cut(tokens, place, workspace.seed)
                if not done:
                    _count(cut, counts, dropped)
                for number, row in islice(
                    enumerate(cut.rows(tokens, self._described(workspace.seed)), 1), done, None
                ):
                    after = {"place": place, "rows": number, "counts": dict(counts), "dropped": dict(dropped)}
                    log.append(row, after)
                progress.update(task, completed=place + 1)
            written = write_rows(workspace.output, log.rows())
            rows = log.count
        by_length = {
            _rows_of(power): counts[_rows_of(power)] for power in range(self.min_power, self.max_power + 1)
        }
        named = {"documents read": len(documents), TOKENS: counts[TOKENS], **by_length}
        lost = {name: dropped[name] for name in (TOO_SHORT, LEFT)}
        return Summary(written, rows, named, lost, method="lm", pairs=False)

    def _cut(self, tokens: DocumentTokens, place: int, seed: int) -> Cut:
        document = tokens[place]
        rng = None
        if self.long == "random":
            rng = np.random.default_rng(derive_seed(seed, "buckets", document.id))
        powers, left = powers_of(len(document), least=self.min_power, most=self.max_power, rng=rng)
        return Cut(place, powers, left)

    def _described(self, seed: int) -> dict[str, Any]:
        return {
            "pipeline": "buckets",
            "seed": seed,
            "min_power": self.min_power,
            "max_power": self.max_power,
            "long": self.long,
        }


@dataclass(frozen=True)
class Cut:
    """A document's powers.

    Attributes:
        place: of the document in the run's order.
        powers: of its rows.
        left: tokens behind the last one, which are dropped.
    """

    place: int
    powers: list[int]
    left: int

    def rows(self, tokens: DocumentTokens, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Its rows, the document's first tokens first."""
        document = tokens[self.place]
        edges = [0, *accumulate(2**power + 1 for power in self.powers)]
        for number, power in enumerate(self.powers):
            start, stop = edges[number : number + 2]
            yield {
                "id": f"{document.id}@{start}",
                "pieces": [one.as_json() for one in tokens.pieces(document, start, stop, continues=False)],
                "document_id": document.id,
                "power": power,
                "tokens": stop - start,
                "start": start,
                "settings": settings,
            }


def _count(cut: Cut, counts: Counter[str], dropped: Counter[str]) -> None:
    for power in cut.powers:
        counts[_rows_of(power)] += 1
        counts[TOKENS] += 2**power + 1
    if not cut.powers:
        dropped[TOO_SHORT] += 1
    if cut.left:
        dropped[LEFT] += cut.left


def _rows_of(power: int) -> str:
    return f"rows of {2**power + 1} tokens"
