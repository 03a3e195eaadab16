"""Of a packed row's examples what only some methods read: numbers of rows, weights of tokens, where pairs are cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from align.data.examples import TokenizedExample
from align.longseq.moving import as_bits


def row_columns(examples: Sequence[TokenizedExample], answers: int) -> Tensor:
    """`[b, K, A]` the numbers of each example, as bits (`moving.as_bits`); K = 0 where the method reads none.

    Examples with 2 and 3 answers and a reward each: `[[[1, 0, 0]], [[0.5, 0.2, 0.1]]]`.
    """
    tables = [example.columns for example in examples]
    kinds = {0 if table is None else len(table) for table in tables}
    if len(kinds) > 1:
        raise ValueError("rows with numbers for the loss and rows without cannot be packed together")
    padded = torch.zeros(len(examples), kinds.pop(), answers, dtype=torch.float64)
    for row, table in zip(padded, tables, strict=True):
        if table is not None:
            row[:, : table.shape[1]] = torch.as_tensor(table)
    return as_bits(padded)


def row_weights(examples: Sequence[TokenizedExample], lengths: Tensor) -> tuple[Tensor, Tensor]:
    """`[S]` weights of scored tokens and `[b, A]` their sums, as bits; tokens of an example without weights weigh 1.

    Answers with the weights 1 2 and 0.5: 1 2 0.5 and `[[3, 0.5]]`.

    Args:
        examples: b of them; none where tokens have no weights, which gives `[0]` and `[b, 0]`.
        lengths: `[b, A]` scored tokens of each answer.
    """
    if not examples:
        return lengths.new_empty(0), lengths.new_empty(len(lengths), 0)
    scored = [answer.weights_or_ones[answer.scored] for example in examples for answer in example.answers]
    counts = [len(example.answers) for example in examples]
    rows = np.repeat(np.arange(len(examples)), counts)
    slots = np.concatenate([np.arange(count) for count in counts])
    sums = torch.zeros(lengths.shape, dtype=torch.float64)
    sums[rows, slots] = torch.tensor([float(weights.sum()) for weights in scored], dtype=torch.float64)
    return as_bits(torch.as_tensor(np.concatenate(scored))), as_bits(sums)


def row_fronts(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """`[S]` each scored token's number in its answer, and `[b, M]` tokens of the shorter answer of each pair.

    A chosen answer of 3 tokens beside rejected ones of 2 and 5: 0 1 2 0 1 0 1 2 3 4, and `[[2, 3]]`.

    Args:
        lengths: `[b, A]` scored tokens of each answer, 0 for an absent one; `[b, 0]` gives `[0]` and `[b, 0]`.
    """
    orders = [torch.arange(length) for length in lengths.flatten().tolist()]
    order = torch.cat([lengths.new_empty(0), *orders])
    return order, torch.minimum(lengths[:, :1], lengths[:, 1:])
