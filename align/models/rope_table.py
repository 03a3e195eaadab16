"""A table of rotary frequencies put into a configuration: as `longrope` with equal lists, which other engines read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from align.core.errors import UserError, first_line
from align.rope_tables.table import RopeContext

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from align.rope_tables.table import Table

# What stands for a division by 0: float32 holds it, and one over it times any base is 0 there.
_STOPPED = 1e38


def table_parameters(
    config: PreTrainedConfig,
    kept: Mapping[str, Any],
    table: Table,
    *,
    dim: int,
    window: int | None,
    attention_factor: float | None,
) -> dict[str, Any]:
    """rope_parameters whose rotary embedding has the table's frequencies for every row.

    transformers computes θ'_i = θ_i / λ_i from LongRoPE's lists, one for rows within a window and one for longer
    ones. With equal lists nothing is switched. A frequency of 0 has the factor 1e38. The window at which they would
    switch is the one that the model states, so that an engine that derives the scale of cos and sin from both (vLLM)
    finds 1 too.

    Args:
        config: the model's text part, with the window that it will state.
        kept: `rope_theta`, and what else outlives a change of type.
        table: of `model.rope.table`.
        dim: d, rotary dimensions of a head.
        window: tokens of pre-training; None where the checkpoint says nothing.
        attention_factor: scale of cos and sin; None is 1.

    Raises:
        UserError: what the table refuses, or frequencies that are none.
    """
    stated = getattr(config, "max_position_embeddings", None)
    if stated is None:
        raise UserError(
            f"model.rope.type=table: this {config.model_type} model states no window: set "
            "model.rope.max_position_embeddings=TOKENS."
        )
    theta = float(kept["rope_theta"])
    plain = theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    found = _computed(table, plain, RopeContext(dim=dim, theta=theta, window=window or stated))
    with np.errstate(divide="ignore", over="ignore"):
        factors = np.minimum(plain / found, _STOPPED).tolist()
    return {
        **kept,
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": list(factors),
        "factor": 1.0,
        "attention_factor": 1.0 if attention_factor is None else float(attention_factor),
        "original_max_position_embeddings": stated,
    }


def _computed(table: Table, plain: np.ndarray, context: RopeContext) -> np.ndarray:
    """The table's frequencies, what is none refused."""
    try:
        found = np.asarray(table.frequencies(plain.copy(), context), dtype=np.float64)
    except UserError:
        raise
    except Exception as error:  # of a class of the user's, or a damaged file, whatever it is
        raise UserError(f"model.rope.table: {first_line(error)}") from error
    if found.shape != plain.shape:
        raise UserError(
            f"model.rope.table gives frequencies of shape {list(found.shape)}, and this model's heads rotate "
            f"{context.dim} dimensions, which need [{len(plain)}]."
        )
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if len(wrong):
        raise UserError(
            f"model.rope.table gives {found[wrong[0]]} as frequency {wrong[0] + 1} of {len(plain)}: they are numbers "
            "from 0 on."
        )
    return found
