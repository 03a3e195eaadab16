"""The group `positions` for one model: what follows from its RoPE, refused where it cannot read such positions."""

from __future__ import annotations

from dataclasses import replace

from align.data.settings import PositionSettings
from align.models.reach import reach_of
from align.models.settings import ModelSettings


def fit_positions(positions: PositionSettings, model: ModelSettings) -> PositionSettings:
    """The settings with their placement fitted; loads no weights.

    Raises:
        UserError: see `Placement.fitted`.
    """
    placement = positions.placement
    return positions if placement is None else replace(positions, placement=placement.fitted(reach_of(model)))
