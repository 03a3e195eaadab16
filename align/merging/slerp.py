"""Spherical interpolation of two models, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from align.merging.rule import Shapes, TensorRule, check_number, fit_count

if TYPE_CHECKING:
    from torch import Tensor

PARALLEL = 1e-4  # radians; below this angle from 0 or π a straight line is as good, and sin θ is no divisor


@dataclass(frozen=True)
class Slerp:
    """`combine=slerp`: each tensor, as one vector, goes along the arc from the first model's to the second's.

    Attributes:
        weight: 0 is the first model, 1 the second.
    """

    weight: float = 0.5
    source: ClassVar[str] = "arXiv 2501.10979"

    def check(self) -> None:
        """Raises UserError for a weight that is no number."""
        check_number("weight", self.weight)

    def fit(self, count: int, *, base: bool) -> None:
        """Two models, or one and its base, which then is the first."""
        fit_count(count + base, least=2, most=2, rule="slerp")

    def linear(self, count: int) -> None:
        """It is no sum with the same weights for every tensor."""

    def over(self, shapes: Shapes, seed: int) -> TensorRule:
        """See `Rule.over`. Computed in float64."""

        def merged(name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
            first, second = models if base is None else (base, *models)
            flat = slerp(first.double().flatten(), second.double().flatten(), self.weight)
            return flat.view(first.shape)

        return merged


def slerp(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """(sin((1 − w)θ) a + sin(wθ) b) / sin θ, with θ the angle between the vectors a and b.

    A vector that is (nearly) parallel to its partner, opposed to it, or zero, is interpolated along the straight
    line; its neighbours are not. `[1, 0]` and `[0, 1]` half way give `[0.70710678, 0.70710678]`.

    Args:
        first: `[…, D]`, vectors along the last dimension.
        second: the same shape.
        weight: 0 gives `first`, 1 `second`.
    """
    import torch

    norms = first.norm(dim=-1, keepdim=True) * second.norm(dim=-1, keepdim=True)
    cosine = (first * second).sum(-1, keepdim=True) / norms.clamp(min=torch.finfo(first.dtype).tiny)
    angle = cosine.clamp(-1, 1).acos()
    straight = (norms == 0) | (angle < PARALLEL) | (angle > torch.pi - PARALLEL)
    sine = torch.where(straight, 1.0, angle.sin())
    left = torch.where(straight, 1 - weight, ((1 - weight) * angle).sin() / sine)
    right = torch.where(straight, weight, (weight * angle).sin() / sine)
    return left * first + right * second
