"""How far a model's rotary embedding reaches, as its configuration says; reads no weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from align.models.loading import load_config, native_window, window_of
from align.models.query_scale import scale_of
from align.models.settings import ModelSettings, RopeSettings
from align.models.text_part import text_config

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    ReadConfig = Callable[[ModelSettings], PreTrainedConfig]


@dataclass(frozen=True)
class Reach:
    """What a placement of positions is told of the model: `Reach(4096, 20.0)` reads positions below 81,920.

    Attributes:
        window: tokens that the checkpoint was made for, without `model.rope` (`max_position_embeddings`, which a
            checkpoint with linear RoPE states as it was before stretching); None where it does not say.
        factor: by what its RoPE divides every position: 1 in plain RoPE, F in linear; None in another type, in layers
            of unlike types, and without RoPE.
        scaled: whether queries are multiplied by a factor that changes with the position (`model.query_scale`).
    """

    window: int | None
    factor: float | None
    scaled: bool = False


def reach_of(settings: ModelSettings, *, read: ReadConfig = load_config) -> Reach:
    """Of the group `model`, `model.rope` included.

    Args:
        settings: of the model.
        read: gives a model's configuration.
    """
    config = read(settings)
    return Reach(_own_window(settings, read), position_factor(config), _scaled(config))


def position_limit(settings: ModelSettings) -> int | None:
    """Positions that the model was made to read; None where nothing says.

    A window of 4,096 under linear RoPE of factor 20: 81,920. Where `model.rope` stretches in another way, None.
    """
    factor, window = position_factor(load_config(settings)), _own_window(settings, load_config)
    if settings.rope.theta is None and factor not in (None, 1.0) and window is not None:
        return int(factor * window)
    return native_window(settings)


def position_factor(config: PreTrainedConfig) -> float | None:
    """See `Reach.factor`."""
    parameters = getattr(text_config(config), "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, Mapping)]
    found = {_factor(node) for node in nested or ([parameters] if parameters else [])}
    return found.pop() if len(found) == 1 else None


def _factor(parameters: Mapping[str, object]) -> float | None:
    kind = parameters.get("rope_type")
    if kind == "linear":
        return float(parameters["factor"])  # type: ignore[arg-type]
    return 1.0 if kind == "default" else None


def _scaled(config: PreTrainedConfig) -> bool:
    """See `Reach.scaled`: whether a far position has another factor than the first, in the last layer."""
    scale = scale_of(config)
    last = text_config(config).num_hidden_layers - 1
    factors = None if scale is None else scale.scale(torch.tensor([[0.0, 2.0**24]]), last)
    return factors is not None and bool(factors[0, 0] != factors[0, 1])


def _own_window(settings: ModelSettings, read: ReadConfig) -> int | None:
    return window_of(read(replace(settings, rope=RopeSettings())))
