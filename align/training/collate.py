"""Stored rows → a packed batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.errors import UserError
from align.data.examples import with_soft_prompt
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
        soft: `[k]` ids of the policy's soft prompt, which go before each prompt; None and none are the same.
        bare: where there are some, also pack the rows without them, for a reference: it has no soft prompt.
    """

    tokens_per_row: int | None = None
    short: bool = False
    fronts: bool = False
    soft: np.ndarray | None = None
    bare: bool = False

    @classmethod
    def of(
        cls, needs: Needs, *, tokens_per_row: int | None = None, soft: np.ndarray | None = None
    ) -> Collator:
        """For a method, and a policy with a soft prompt of these ids."""
        bare = needs.reference != "none"
        return cls(tokens_per_row, short=needs.short, fronts=needs.fronts, soft=soft, bare=bare)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """`{"batch": …, "sources": …}` of B rows, in order: packed, and where each stands (`train.jsonl:17`).

        With `short` also `{"short": …}`, one prompt for each of the n turns, and `owner`, `[n]` in `[0, B)`: the
        row that each turn belongs to. With a soft prompt, and `bare`, also `{"bare": …}`: `batch` and `short` without
        it.
        """
        if rows and "prompt_ids" not in rows[0]:
            raise UserError(
                f"rows with the columns {', '.join(rows[0])} are not tokenised: give them to the trainer as "
                "train_dataset or eval_dataset, which does that."
            )
        bare = [to_example(row) for row in rows]
        soft = np.empty(0, dtype=np.int64) if self.soft is None else self.soft
        examples = [with_soft_prompt(example, soft) for example in bare]
        batch = self._packed(examples) | {"sources": [example.source for example in examples]}
        if self.short:
            owner = [b for b, example in enumerate(examples) for _ in example.short]
            # An array stays on the CPU, where a loader moves tensors.
            batch["owner"] = np.array(owner, dtype=np.int64)
        if self.bare and len(soft):
            batch["bare"] = self._packed(bare)
        return batch

    def _packed(self, examples: Sequence[TokenizedExample]) -> dict[str, Any]:
        packed = {"batch": self._pack(examples)}
        if self.short:
            packed["short"] = self._pack([turn for example in examples for turn in example.short])
        return packed

    def _pack(self, examples: Sequence[TokenizedExample]) -> SharedPrefixBatch:
        return pack(examples, tokens_per_row=self.tokens_per_row, fronts=self.fronts)
