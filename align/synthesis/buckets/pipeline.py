"""`pipeline=buckets`: documents → rows of 2^k + 1 tokens (Dataset Decomposition, arXiv 2405.13226)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align.core.config import check_choice
from align.core.errors import UserError
from align.documents.loading import Document, load_documents
from align.generation.generators import derive_seed
from align.synthesis.pipeline import Summary, at_least
from align.synthesis.row_log import make_rows

if TYPE_CHECKING:
    from align.generation.stage import Workspace

LONG = ("largest", "random")  # of `pipeline.long`
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
        from align.synthesis.buckets.work import Work  # numpy, datasets
        from align.synthesis.token_documents import DocumentTokens, shuffled

        ordered = shuffled(documents, derive_seed(workspace.seed, "buckets/order"))
        work = Work(self, DocumentTokens(ordered, workspace.tokenizer, start=True), workspace.seed)
        path, rows = make_rows(work, workspace, documents=len(ordered))
        counts = {"documents read": len(documents), **work.counted()}
        return Summary(path, rows, counts, work.lost(), method="lm", pairs=False)
