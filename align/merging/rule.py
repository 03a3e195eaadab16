"""What a rule of the group `combine` is, and what several of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from align.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Shapes: TypeAlias = Mapping[str, Sequence[int]]
# name of a tensor, that tensor of each model, that of the base model (None without one) → the merged tensor
TensorRule: TypeAlias = "Callable[[str, Sequence[Tensor], Tensor | None], Tensor]"


class Rule(Protocol):
    """What the group `combine` instantiates: a dataclass whose fields are the group's keys. It imports no torch.

    One that is from a paper names it in a class attribute, `source = "arXiv 2306.01708"`, for the model card.
    """

    def check(self) -> None:
        """Raises UserError for a value out of range."""

    def fit(self, count: int, *, base: bool) -> None:
        """Raises UserError where the rule does not take so many models, or needs a base model and there is none."""

    def linear(self, count: int) -> list[float] | None:
        """The rule as base + Σ wᵢ (modelᵢ − base), for every base: the weights w; None where it is no such sum."""

    def over(self, shapes: Shapes, seed: int) -> TensorRule:
        """What merges one tensor, given all of the model's by name, and the command's seed.

        Tensors come in float32 (float64 where they are stored so), all of one shape, and are not to be changed.
        """


def check_weights(weights: Sequence[float] | None) -> None:
    """Refuses `combine.weights` that are no numbers."""
    if weights is not None and not (weights and all(map(math.isfinite, weights))):
        raise UserError(f"combine.weights={list(weights)} has to be finite numbers, one for each model.")


def fit_weights(weights: Sequence[float] | None, count: int) -> None:
    """Refuses `combine.weights` that are not as many as the models."""
    if weights is not None and len(weights) != count:
        raise UserError(
            f"combine.weights={list(weights)} has {len(weights)} for {count} models: give one for each of `models`, in "
            "their order."
        )


def fit_count(count: int, *, least: int, most: int | None, rule: str) -> None:
    """Refuses another number of models than a rule takes."""
    if count < least or (most is not None and count > most):
        wanted = f"{least}" if most == least else f"{least} or more"
        raise UserError(
            f"models has {count} and combine={rule} takes {wanted}: name that many, or take another rule."
        )


def need_base(base: bool, *, rule: str) -> None:
    """Refuses a rule that works on differences where nothing is named that they are taken to."""
    if not base:
        raise UserError(
            f"combine={rule} works on what training has changed: name the model that it started from, base=…."
        )


def need_none(base: bool, *, rule: str) -> None:
    """Refuses a base model for a rule that has no use for it."""
    if base:
        raise UserError(
            f"combine={rule} has no use for a base model: leave base= out, or add it to `models`."
        )


def check_number(key: str, value: float) -> None:
    """Refuses NaN and infinity."""
    if not math.isfinite(value):
        raise UserError(f"combine.{key}={value} has to be a finite number.")


def check_density(density: float) -> None:
    """Refuses a share of what is kept outside of 0 < density ≤ 1."""
    if not 0 < density <= 1:
        raise UserError(
            f"combine.density={density} is the share of differences that is kept: give 0 < density ≤ 1."
        )
