"""What a query scale is, and how a checkpoint keeps one: in its `config.json`, as plain values with a `_target_`.

A model's own attention multiplies queries by one number, `D ** -0.5`. A query scale multiplies each by a further one,
which depends on its position, so that attention over long contexts is as sharp as over short ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Protocol

from align.core.config import check_arguments
from align.core.errors import UserError
from align.core.instantiate import allowed, instantiate

if TYPE_CHECKING:
    from torch import Tensor

KEY = "model.query_scale"
STORED = "query_scale"  # its name in a configuration
KIND = "query_scale"  # of core/targets.py
_WHERE = f"`{STORED}` of config.json"
# Scales by what a configuration holds of them. Attention has a model's configuration and no more, and of a package of
# the user's nothing is imported that a checkpoint names: such a scale is found here once `model.query_scale` named it.
_BUILT: dict[str, QueryScale] = {}


class QueryScale(Protocol):
    """A frozen dataclass whose fields are the keys of `model.query_scale`; see log_length.py.

    A field `window` that is None stands for the window of the checkpoint, in tokens.
    """

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        ...

    def scale(self, positions: Tensor, layer: int) -> Tensor | None:
        """What queries are multiplied by in one layer.

        Args:
            positions: `[B, T]`, counted from 0, in the precision in which the scale is to be computed.
            layer: its number, counted from 0.

        Returns:
            `[B, T]` of the same dtype, positive; None leaves the layer's queries as they are.
        """
        ...

    def words(self) -> str:
        """The factor as a formula of the position p, from 0, for whoever serves the model."""
        ...


def plain(scale: QueryScale) -> dict[str, Any]:
    """The scale as a configuration keeps it.

    `Llama4(window=8)`: `{"_target_": "align.query_scale.llama4.Llama4", "beta": 0.1, "window": 8}`.
    """
    kind = type(scale)
    stored = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **asdict(scale)}  # type: ignore[call-overload]
    _BUILT[_name(stored)] = scale
    return stored


def built(stored: Mapping[str, Any]) -> QueryScale:
    """The scale that a configuration holds.

    Raises:
        UserError: values out of range, or a class of a package of the user's that `model.query_scale` has not named in
            this process: what a checkpoint says is not imported.
    """
    name = _name(stored)
    if name not in _BUILT:
        target = stored.get("_target_") if isinstance(stored, Mapping) else None
        if isinstance(target, str) and not allowed(target, ("align",)):
            raise UserError(
                f"{_WHERE} names {target}, and no code is run because a checkpoint names it: name it yourself, "
                f"{KEY}._target_={target}, with its package in allow_targets."
            )
        scale: QueryScale = instantiate(stored, allow=("align",), where=_WHERE, kind=KIND)
        check_arguments(vars(scale), type(scale), group=_WHERE, reserved={})
        scale.check()
        _BUILT[name] = scale
    return _BUILT[name]


def with_window(scale: QueryScale, window: int | None) -> QueryScale:
    """The scale with the checkpoint's window in the place of a `window` that is None.

    Raises:
        UserError: the checkpoint names no window either.
    """
    if getattr(scale, "window", 0) is not None:
        return scale
    if window is None:
        raise UserError(f"{KEY}.window is null, and the checkpoint names no window: give its tokens.")
    filled: QueryScale = replace(scale, window=window)  # type: ignore[type-var]
    filled.check()
    return filled


def _name(stored: Any) -> str:
    return json.dumps(stored, sort_keys=True, default=str)
