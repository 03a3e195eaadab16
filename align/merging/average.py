"""Weighted means: of several models, and of a trained model with the one that it started from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align.core.errors import UserError
from align.merging.rule import (
    Shapes,
    TensorRule,
    check_number,
    check_weights,
    fit_count,
    fit_weights,
    need_base,
    need_none,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Average:
    """`combine=average`: θ = Σ wᵢ θᵢ / Σ wᵢ (model soups).

    Attributes:
        weights: one for each model; null: equal ones.
    """

    weights: list[float] | None = None
    source: ClassVar[str] = "arXiv 2203.05482"

    def check(self) -> None:
        """Raises UserError for weights that are no numbers, or whose sum is not above 0."""
        check_weights(self.weights)
        if self.weights is not None and sum(self.weights) <= 0:
            raise UserError(
                f"combine.weights={self.weights} sum to {sum(self.weights):g}: a mean needs a sum above 0."
            )

    def fit(self, count: int, *, base: bool) -> None:
        """Two models or more, and no base."""
        fit_count(count, least=2, most=None, rule="average")
        fit_weights(self.weights, count)
        need_none(base, rule="average")

    def linear(self, count: int) -> list[float]:
        """The weights, summing to 1."""
        weights = self.weights or [1.0] * count
        return [weight / sum(weights) for weight in weights]

    def over(self, shapes: Shapes, seed: int) -> TensorRule:
        """See `Rule.over`."""

        def merged(name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
            weights = self.linear(len(models))
            total = models[0] * weights[0]
            for model, weight in zip(models[1:], weights[1:], strict=True):
                total.add_(model, alpha=weight)
            return total

        return merged


@dataclass(frozen=True)
class Interpolate:
    """`combine=interpolate`: θ = θ⁰ + w (θ¹ − θ⁰), WiSE-FT and the merge of Kimi k1.5's long2short.

    Attributes:
        weight: 0 is the base model, 1 the trained one; beyond 1 it goes on in the same direction.
    """

    weight: float = 0.5
    source: ClassVar[str] = "arXiv 2109.01903"

    def check(self) -> None:
        """Raises UserError for a weight that is no number."""
        check_number("weight", self.weight)

    def fit(self, count: int, *, base: bool) -> None:
        """One model and its base."""
        fit_count(count, least=1, most=1, rule="interpolate")
        need_base(base, rule="interpolate")

    def linear(self, count: int) -> list[float]:
        """The weight of the one model."""
        return [self.weight]

    def over(self, shapes: Shapes, seed: int) -> TensorRule:
        """See `Rule.over`."""

        def merged(name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
            assert base is not None
            return base.lerp(models[0], self.weight)

        return merged
