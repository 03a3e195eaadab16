"""`pipeline=utk`: documents → long rows of `method=lm`, knotted (Untie the Knots, arXiv 2409.04774) or plain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from align.core.config import check_choice
from align.core.errors import UserError
from align.documents.loading import Document, load_documents
from align.generation.generators import derive_seed
from align.synthesis.pipeline import Summary, at_least
from align.synthesis.row_log import make_rows
from align.synthesis.utk.marks import ORDERS, Marks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from align.generation.stage import Workspace


@dataclass(frozen=True)
class UtkPipeline:
    """Group `pipeline`; hydra_conf/pipeline/utk.yaml comments every key."""

    reads_documents: ClassVar[bool] = True
    uses_generator: ClassVar[bool] = False

    documents: str | None = None
    row_tokens: int = 131072
    rows: int | None = None
    share: float = 0.8
    pieces: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.4])
    min_split: int = 512
    order: str = "keep"
    backtrace: bool = True
    label_marks: list[str] = field(default_factory=lambda: ["<|label|>", "<|/label|>"])
    head_mark: str = "<|h_{j}|>"
    tail_mark: str = "<|t_{j}|>"
    list_marks: list[str] = field(default_factory=lambda: ["<|list|>", "<|then|>", "<|/list|>"])

    def check(self) -> None:
        """Raises UserError for a value out of range or marks that cannot be told apart; reads nothing."""
        check_choice("pipeline.order", self.order, ORDERS)
        at_least("row_tokens", self.row_tokens, 2)
        at_least("rows", 1 if self.rows is None else self.rows, 1)
        if not 0 <= self.share <= 1:
            raise UserError(
                f"pipeline.share={self.share} must lie in [0, 1]: it is the part of the rows that is knotted."
            )
        if (
            not self.pieces
            or min(self.pieces) < 0
            or not math.isclose(math.fsum(self.pieces), 1, abs_tol=1e-9)
        ):
            raise UserError(
                f"pipeline.pieces={list(self.pieces)} must be the odds of 1, 2, 3, … pieces, from 0 on and 1 together."
            )
        at_least("min_split", self.min_split, len(self.pieces))
        self._check_marks()

    def _check_marks(self) -> None:
        for key, marks, count in (("label", self.label_marks, 2), ("list", self.list_marks, 3)):
            if len(marks) != count:
                raise UserError(f"pipeline.{key}_marks={list(marks)} must name {count} tokens.")
        for key, mark in (("head", self.head_mark), ("tail", self.tail_mark)):
            if mark.replace("{j}", "", 1) == mark or set(mark.replace("{j}", "")) & set("{}"):
                raise UserError(
                    f"pipeline.{key}_mark={mark} needs the place {{j}} once, for the number of the piece, and no other "
                    "braces."
                )
        names = self.marks.names(len(self.pieces), backtrace=True)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"pipeline: two marks are {twice[0]}: give each a token of its own.")

    @property
    def marks(self) -> Marks:
        """The tokens that are put in."""
        label, between = self.label_marks, self.list_marks
        return Marks(
            (label[0], label[1]), self.head_mark, self.tail_mark, (between[0], between[1], between[2])
        )

    @property
    def needed(self) -> list[str]:
        """Marks that rows may hold: none where no row is knotted."""
        most = max(number for number, odds in enumerate(self.pieces, start=1) if odds)
        return self.marks.names(most, backtrace=self.backtrace) if self.share else []

    def read(self) -> list[Document]:
        """The documents; raises UserError where there are none."""
        return load_documents(self.documents)

    def run(self, documents: Sequence[Document], workspace: Workspace) -> Summary:
        """Makes the rows; those of an earlier start are kept, and it goes on behind them.

        Raises:
            UserError: the tokenizer lacks a mark, or a row is too short for a piece of a document with its marks.
        """
        from align.synthesis.token_documents import DocumentTokens, shuffled  # numpy, datasets
        from align.synthesis.utk.work import TOO_FEW, Work

        self._check_tokens(workspace.tokenizer)
        usable = [one for one in documents if not any(mark in one.text for mark in self.needed)]
        ordered = shuffled(usable, derive_seed(workspace.seed, "utk/order"))
        tokens = DocumentTokens(ordered, workspace.tokenizer, start=False)
        work = Work(self, tokens, workspace.seed)
        path, rows = make_rows(work, workspace, documents=len(ordered))
        dropped = {
            "document that spells one of the marks": len(documents) - len(usable),
            "document, or what is left of it, behind the last row": len(ordered) - work.place,
            TOO_FEW: work.counts.pop(TOO_FEW, 0),
        }
        counts = {"documents read": len(documents), **work.counts}
        return Summary(path, rows, counts, dropped, method="lm", pairs=False)

    def _check_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuses marks that the tokenizer lacks."""
        from align.data.piece_rows import lacking, token_id

        missing = [name for name in self.needed if token_id(tokenizer, name) is None]
        if missing:
            raise UserError(f"pipeline=utk: {lacking(missing)}, here and in training.")
