"""Rows of a planned length that `align train` would cut: to `data.max_length`, or to the model's window without it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from omegaconf import DictConfig
from transformers import PreTrainedConfig

from align.models.loading import window_of
from align.models.settings import ModelSettings
from align.planning.job import Rows


@dataclass(frozen=True)
class Cut:
    """What a command has to set beside, so that its rows are as long as was planned.

    Attributes:
        sentence: what would be cut, to what, and what keeps it.
        overrides: what the command to paste gets.
    """

    sentence: str
    overrides: tuple[str, ...] = ()


def cut_of(
    config: DictConfig, model: ModelSettings, architecture: PreTrainedConfig, rows: Rows
) -> Cut | None:
    """None where training reads rows as they were planned, and where `data.path` says how long they are.

    Args:
        config: the whole configuration.
        model: its group `model`.
        architecture: the model's configuration.
        rows: the planned lengths.
    """
    if config.data.path is not None:
        return None
    tokens, limit = rows.prompt + max(rows.answers), config.data.max_length
    if limit is not None:
        if tokens <= limit:
            return None
        return Cut(
            f"data.max_length={limit} would cut these rows of {tokens} tokens: set data.max_length={tokens}."
        )
    window = window_of(architecture)
    stretched = any(value is not None for value in (model.rope.theta, model.rope.type, model.rope.factor))
    if stretched or window is None or tokens <= window:
        return None
    return Cut(
        f"Without data.max_length training would cut these rows of {tokens} tokens to the model's window of {window}: "
        f"the command sets it, and model.rope.type=yarn model.rope.factor={math.ceil(tokens / window)}, say, has the "
        "model read positions beyond its window.",
        (f"data.max_length={tokens}",),
    )
