"""Rules on what training changed, δᵢ = θᵢ − θ⁰: task arithmetic, TIES and DARE, with PEFT's arithmetic."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from align.merging.rule import (
    Shapes,
    TensorRule,
    check_density,
    check_weights,
    fit_count,
    fit_weights,
    need_base,
)

if TYPE_CHECKING:
    from torch import Tensor

Kept = Literal["magnitude", "random"]


@dataclass(frozen=True)
class TaskArithmetic:
    """`combine=task_arithmetic`: θ = θ⁰ + Σ wᵢ δᵢ.

    Attributes:
        weights: one for each model; null: 1 each. One below 0 takes away what a model learnt.
    """

    weights: list[float] | None = None
    source: ClassVar[str] = "arXiv 2212.04089"

    def check(self) -> None:
        """Raises UserError for weights that are no numbers."""
        check_weights(self.weights)

    def fit(self, count: int, *, base: bool) -> None:
        """One model or more, and their base."""
        fit_count(count, least=1, most=None, rule="task_arithmetic")
        fit_weights(self.weights, count)
        need_base(base, rule="task_arithmetic")

    def linear(self, count: int) -> list[float]:
        """The weights."""
        return self.weights or [1.0] * count

    def over(self, shapes: Shapes, seed: int) -> TensorRule:
        """See `Rule.over`."""

        def merged(name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
            assert base is not None
            total = base.clone()
            for model, weight in zip(models, self.linear(len(models)), strict=True):
                total.add_(model - base, alpha=weight)
            return total

        return merged


@dataclass(frozen=True)
class Ties:
    """`combine=ties`: of each δᵢ the largest are kept, a sign is elected for each weight, and those of it are averaged.

    The sign of a weight is that of the sum of the kept δ; the mean is over the models that have it.

    Attributes:
        density: share of each tensor's δ that is kept, by magnitude.
        weights: one for each model; null: 1 each.
    """

    density: float = 0.2
    weights: list[float] | None = None
    source: ClassVar[str] = "arXiv 2306.01708"

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_density(self.density)
        check_weights(self.weights)

    def fit(self, count: int, *, base: bool) -> None:
        """Two models or more, and their base."""
        fit_count(count, least=2, most=None, rule="ties")
        fit_weights(self.weights, count)
        need_base(base, rule="ties")

    def linear(self, count: int) -> None:
        """It is no sum."""

    def over(self, shapes: Shapes, seed: int) -> TensorRule:
        """See `Rule.over`."""

        def merged(name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
            assert base is not None
            kept = [pruned(model - base, self.density, "magnitude", seed=0) for model in models]
            return base + elected_mean(kept, self.weights or [1.0] * len(models))

        return merged


@dataclass(frozen=True)
class DareLinear:
    """`combine=dare_linear`: each δ is dropped with chance 1 − density, what is left is divided by the density.

    Attributes:
        density: chance that a δ is kept.
        weights: one for each model; null: 1 each.
    """

    density: float = 0.5
    weights: list[float] | None = None
    source: ClassVar[str] = "arXiv 2311.03099"
    rule: ClassVar[str] = "dare_linear"
    least: ClassVar[int] = 1

    def check(self) -> None:
        """Raises UserError for a value out of range."""
        check_density(self.density)
        check_weights(self.weights)

    def fit(self, count: int, *, base: bool) -> None:
        """As many models as the rule takes, and their base."""
        fit_count(count, least=self.least, most=None, rule=self.rule)
        fit_weights(self.weights, count)
        need_base(base, rule=self.rule)

    def linear(self, count: int) -> None:
        """What is dropped differs from one weight to the next."""

    def over(self, shapes: Shapes, seed: int) -> TensorRule:
        """See `Rule.over`. Of each tensor and each model other weights are dropped."""

        def merged(name: str, models: Sequence[Tensor], base: Tensor | None) -> Tensor:
            assert base is not None
            kept = [
                pruned(model - base, self.density, "random", seed=_seed_of(seed, name, i))
                for i, model in enumerate(models)
            ]
            return base + self._sum(kept, self.weights or [1.0] * len(models))

        return merged

    def _sum(self, kept: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return weighted_sum(kept, weights)


@dataclass(frozen=True)
class DareTies(DareLinear):
    """`combine=dare_ties`: drops as `dare_linear` does, then elects signs and averages as `ties` does."""

    rule: ClassVar[str] = "dare_ties"
    least: ClassVar[int] = 2

    def _sum(self, kept: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        return elected_mean(kept, weights)


def pruned(difference: Tensor, density: float, kept: Kept, *, seed: int) -> Tensor:
    """A difference with a share of its entries alone, the others 0; those kept at random are divided by the density.

    Args:
        difference: of any shape.
        density: the share; 1 keeps all.
        kept: which: the largest by `magnitude`, or each with this chance, `random`.
        seed: of the latter; torch's own random numbers are left as they were.
    """
    import torch
    from peft.utils.merge_utils import prune

    if density == 1:  # of which PEFT would warn
        return difference
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kept_alone: Tensor = prune(difference, density, method=kept, rescale=kept == "random")
    return kept_alone


def weighted_sum(differences: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ wᵢ δᵢ."""
    from peft.utils.merge_utils import task_arithmetic

    total: Tensor = task_arithmetic(list(differences), differences[0].new_tensor(list(weights)))
    return total


def elected_mean(differences: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """For each entry the mean of wᵢ δᵢ over the models whose δ has the sign of Σ δ; 0 where none has.

    `[0.4, -0.3], [0.0, -0.6]` with weights 1 and 1 give `[0.4, -0.45]`: the first entry has one model.
    """
    import torch
    from peft.utils.merge_utils import (
        calculate_majority_sign_mask,
        disjoint_merge,
        reshape_weight_task_tensors,
    )

    stacked = torch.stack(list(differences))
    agreed = calculate_majority_sign_mask(stacked)
    scale = reshape_weight_task_tensors(stacked, stacked.new_tensor(list(weights)))
    mean: Tensor = disjoint_merge(stacked * scale, agreed)
    return mean


def _seed_of(seed: int, name: str, model: int) -> int:
    """A seed for one tensor of one model."""
    import numpy as np

    words = np.random.SeedSequence([seed, zlib.crc32(name.encode()), model]).generate_state(1, np.uint64)
    return int(words[0]) >> 1
