"""The group `positions` of a command's configuration, read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.core.config import reference_sentence, typed
from align.core.errors import UserError, first_line
from align.core.instantiate import build
from align.data.settings import PositionSettings

if TYPE_CHECKING:
    from align.data.positions import Placement


@dataclass(frozen=True)
class _Shared:
    """Keys of the group whatever is chosen."""

    chunk_tokens: int = 512
    redraw: str = "never"


@dataclass(frozen=True)
class _Unplaced(_Shared):
    """`positions=none`: recipes set LOGO's keys, which nobody reads then."""

    target_length: int = 65536
    draw: str = "slots"
    sparse_share: float = 0.1


def read_positions(config: DictConfig) -> PositionSettings:
    """The group `positions`; without a `_target_` the tokens keep their own positions.

    Args:
        config: a command's whole configuration; its `allow_targets` may name placements beside this project's.

    Raises:
        UserError: a wrong key or value, or a class that is no placement.
    """
    values = _values(config)
    if "mode" in values:
        raise UserError(
            f"positions.mode is no key any more: write positions={values['mode']} where a command names it, and in a "
            "file of yours the `_target_` and keys that hydra_conf/positions/logo.yaml has."
        )
    if values.get("_target_") is None:
        values.pop("_target_", None)
        shared: _Shared = typed(_Unplaced, OmegaConf.create({"positions": values}), "positions")
        return PositionSettings(None, shared.chunk_tokens, shared.redraw)
    common = {name: values.pop(name) for name in ("chunk_tokens", "redraw") if name in values}
    shared = typed(_Shared, OmegaConf.create({"positions": common}), "positions")
    asked = OmegaConf.create({"positions": values, "allow_targets": config.get("allow_targets") or []})
    placement: Placement = build(asked, "positions")
    if not hasattr(placement, "target_length"):
        raise UserError(
            f"positions._target_={values['_target_']}: a placement has a field target_length, below which its "
            "positions lie; it may be null."
        )
    return PositionSettings(placement, shared.chunk_tokens, shared.redraw)


def _values(config: DictConfig) -> dict[str, Any]:
    """The group's keys, references followed."""
    try:
        values: Any = OmegaConf.to_container(config.positions, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(
            reference_sentence(error, "positions") or f"positions: {first_line(error)}"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"positions={values} is no mapping: positions=NAME chooses one, such as logo.")
    return {str(name): value for name, value in values.items()}
