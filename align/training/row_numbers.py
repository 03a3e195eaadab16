"""The numbers that rows bring along for a loss, as `PairLogps.columns`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from align.core.errors import UserError
from align.longseq.logps import sum_dtype
from align.longseq.moving import from_bits
from align.longseq.shared_prefix import SharedPrefixBatch
from losses.types import PairLogps


def with_columns(policy: PairLogps, batch: SharedPrefixBatch, kinds: Mapping[str, str]) -> PairLogps:
    """The policy's log-probs with the numbers of their rows; the same object where the method reads none.

    Args:
        policy: of the batch.
        batch: B prompts with at most A answers each, on the policy's device.
        kinds: `needs.columns`, in the order in which rows were read with it.

    Raises:
        UserError: the rows were tokenised for another method.
    """
    if not kinds:
        return policy
    if batch.rows[0].columns.shape[1] != len(kinds):
        raise UserError(
            f"the method reads {', '.join(kinds)} of every row, which these rows were not tokenised with: give the "
            "rows as they are, not tokenised."
        )
    numbers = from_bits(torch.cat([row.columns for row in batch.rows]))
    numbers = numbers.to(sum_dtype(numbers.device))
    columns = {name: _OF_KIND[kind](numbers[:, k]) for k, (name, kind) in enumerate(kinds.items())}
    return replace(policy, columns=columns)


# Kind → what the loss gets of `[B, A]`: a prompt's number stands once for each answer, the chosen one's always there.
_OF_KIND: dict[str, Callable[[Tensor], Tensor]] = {
    "prompt": lambda values: values[:, 0],
    "answer": lambda values: values,
    "label": lambda values: values,
}
