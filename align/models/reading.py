"""The group `model` of a command's configuration, with what its keys describe in place of their descriptions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from align.core.config import typed
from align.core.errors import UserError
from align.core.instantiate import build
from align.models.settings import ModelSettings
from align.query_scale.scale import KEY, KIND

if TYPE_CHECKING:
    from align.rope_tables.table import Table


def typed_model(config: DictConfig) -> ModelSettings:
    """Group `model` of a command's configuration, with what `model.rope.table` and `model.query_scale` describe.

    Args:
        config: the whole configuration; its `allow_targets` are allowed beside `align`.

    Raises:
        UserError: a wrong key or value, a target that is not allowed, or what its own `check()` refuses.
    """
    model = typed(ModelSettings, config, "model")
    if model.query_scale is not None:
        model = replace(model, query_scale=build(config, KEY, kind=KIND))
    if model.rope.table is None:
        return model
    if model.rope.type != "table":
        raise UserError(
            f"model.rope.table is set, and model.rope.type={model.rope.type or 'null'} does not read it: set "
            "model.rope.type=table."
        )
    table: Table = build(config, "model.rope.table", kind="table")
    return replace(model, rope=replace(model.rope, table=table))
