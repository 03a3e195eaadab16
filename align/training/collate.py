"""Stored rows → a packed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.errors import UserError
from align.data.stored_rows import to_example
from align.longseq.shared_prefix import pack

if TYPE_CHECKING:
    from align.data.examples import TokenizedExample
    from align.longseq.shared_prefix import SharedPrefixBatch
    from align.training.method_settings import Needs


@dataclass(frozen=True)
class Collator:
    """Packs stored rows into a shared-prefix batch (`align.longseq.shared_prefix.pack`).

    Attributes:
        tokens_per_row: see `pack`.
        short: also pack the rows' short contexts, for methods that read them.
        fronts: see `pack`.
    """

    tokens_per_row: int | None = None
    short: bool = False
    fronts: bool = False

    @classmethod
    def of(cls, needs: Needs, *, tokens_per_row: int | None = None) -> Collator:
        """For a method."""
        return cls(tokens_per_row, short=needs.short, fronts=needs.fronts)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`{"batch": …, "sources": …}` of B rows, in order: packed, and where each stands (`train.jsonl:17`).

        With `short` also `{"short": …}`, one prompt for each of the n turns, and `owner`, `[n]` in `[0, B)`: the
        row that each turn belongs to.
        """
        if rows and "prompt_ids" not in rows[0]:
            raise UserError(
                f"rows with the columns {', '.join(rows[0])} are not tokenised: give them to the trainer as "
                "train_dataset or eval_dataset, which does that."
            )
        examples = [to_example(row) for row in rows]
        batch: dict[str, Any] = {
            "batch": self._pack(examples),
            "sources": [example.source for example in examples],
        }
        if self.short:
            batch["short"] = self._pack([turn for example in examples for turn in example.short])
            owner = [b for b, example in enumerate(examples) for _ in example.short]
            batch["owner"] = np.array(
                owner, dtype=np.int64
            )  # an array stays on the CPU, where a loader moves tensors
        return batch

    def _pack(self, examples: Sequence[TokenizedExample]) -> SharedPrefixBatch:
        return pack(examples, tokens_per_row=self.tokens_per_row, fronts=self.fronts)
