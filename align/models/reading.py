"""The group `model` of a command's configuration, with what its keys describe in place of their descriptions."""

from __future__ import annotations

from dataclasses import replace

from omegaconf import DictConfig

from align.core.config import typed
from align.core.instantiate import build
from align.models.settings import ModelSettings
from align.query_scale.scale import KEY, KIND


def typed_model(config: DictConfig) -> ModelSettings:
    """Group `model` of a command's configuration, with the object that `model.query_scale` describes.

    Args:
        config: the whole configuration; its `allow_targets` are allowed beside `align`.

    Raises:
        UserError: a wrong key or value, a target that is not allowed, or what the scale's own `check()` refuses.
    """
    model = typed(ModelSettings, config, "model")
    if model.query_scale is None:
        return model
    return replace(model, query_scale=build(config, KEY, kind=KIND))
