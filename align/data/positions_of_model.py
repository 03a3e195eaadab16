"""The group `positions` for one model: what follows from its RoPE, refused where it cannot read such positions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from align.data.settings import PositionSettings
from align.models.loading import load_config
from align.models.reach import reach_of
from align.models.settings import ModelSettings

if TYPE_CHECKING:
    from align.models.reach import ReadConfig


def fit_positions(
    positions: PositionSettings, model: ModelSettings, *, read: ReadConfig = load_config
) -> PositionSettings:
    """The settings with their placement fitted; loads no weights.

    Args:
        positions: group `positions`.
        model: group `model`.
        read: gives a model's configuration.

    Raises:
        UserError: see `Placement.fitted`.
    """
    placement = positions.placement
    if placement is None:
        return positions
    return replace(positions, placement=placement.fitted(reach_of(model, read=read)))
