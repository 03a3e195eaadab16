"""The plain way: one padded row for each answer, the library's own attention, all logits. What `verify` trusts."""

from __future__ import annotations

from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from align.data.examples import Answer, TokenizedExample
from align.models.structure import find_causal_lm
from losses.types import PairLogps


def plain_pair_logps(model: nn.Module, examples: Sequence[TokenizedExample]) -> PairLogps:
    """As `align.longseq.pair_logps`, the slow way, for examples with equally many answers.

    Args:
        model: a causal language model with any attention of the library.
        examples: B rows of 1 + M answers each.

    Returns:
        PairLogps of `[B]` and `[B, M]`, without NLL.
    """
    device = next(model.parameters()).device
    branches = [(example, answer) for example in examples for answer in example.answers]
    ids, positions, mask, scored = (
        torch.as_tensor(np.stack(rows)).to(device) for rows in zip(*_padded(branches), strict=True)
    )
    given: dict[str, Any] = {"position_ids": positions, "attention_mask": mask, "use_cache": False}
    takes = signature(type(find_causal_lm(model)).forward).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        given = {name: value for name, value in given.items() if name in takes}
    logits = model(input_ids=ids, **given).logits
    targets = (ids * scored)[:, 1:, None]  # a soft prompt's ids, which are never scored, have no logits
    logps = logits[:, :-1].log_softmax(-1).gather(-1, targets).squeeze(-1)
    sums = (logps.double() * scored[:, 1:]).sum(-1).view(len(examples), -1)
    lengths = scored.sum(-1).view(len(examples), -1)
    return PairLogps(sums[:, 0], sums[:, 1:], lengths[:, 0], lengths[:, 1:])


def _padded(
    branches: Sequence[tuple[TokenizedExample, Answer]],
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """(ids, positions, attention mask, scored) of each row, `[T]` each, filled up with zeros on the right."""
    longest = max(len(example.prompt_ids) + len(answer.input_ids) for example, answer in branches)
    rows = []
    for example, answer in branches:
        prompt, tokens = len(example.prompt_ids), len(answer.input_ids)
        columns = (
            np.concatenate([example.prompt_ids, answer.input_ids]),
            np.concatenate([example.position_ids, example.positions_of(answer)]),
            np.ones(prompt + tokens, dtype=np.int64),
            np.concatenate([np.zeros(prompt, dtype=bool), answer.scored]),
        )
        ids, positions, mask, scored = (np.pad(column, (0, longest - prompt - tokens)) for column in columns)
        rows.append((ids, positions, mask, scored))
    return rows


def relative_error(value: Tensor, expected: Tensor) -> float:
    """‖g − g′‖ / ‖g′‖; infinite where only g′ is 0."""
    difference, scale = (value - expected).norm().item(), expected.norm().item()
    if scale == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / scale
