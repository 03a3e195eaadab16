"""Which single weights train, chosen anew every few steps: the rule of SpIEL-AG (arXiv 2401.16405), in numbers.

A weight has a place in its matrix, a value δ that is added to the pretrained weight, an age (its updates so far) and
AdamW's two moments. Every S steps a window of about γ steps opens in which the dense gradients of k candidates are
summed; at its close the weights with the smallest |δ| make room for the candidates with the largest sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

SCHEDULES = ("linear", "cosine")


def in_window(update: int, *, every: int, collect: int) -> bool:
    """Whether an update's gradients are collected: with S = 20 and γ = 5 of the updates 1 … 5, 20 … 25, 40 … 45, ….

    Args:
        update: from 1.
        every: S, updates from one window to the next.
        collect: γ, the update after S, 2S, … at whose end the window closes.
    """
    return update % every <= collect


def closes(update: int, *, every: int, collect: int) -> bool:
    """Whether weights are chosen anew after an update: with S = 20 and γ = 5 after 5, 25, 45, …."""
    return update % every == collect


def share_at(update: int, *, total: int, collect: int, rate: float, schedule: str) -> float:
    """Share of a layer's weights that are given up after an update.

    `linear`: all of them the first time, then p₀(1 − s/T); `cosine`: p₀(1 + cos(πs/T))/2. With p₀ = 0.2, s = 25 and
    T = 100 that is 0.15 and 0.17071068.

    Args:
        update: s, at which a window closes.
        total: T, updates of the whole run.
        collect: γ, at which the first window closes.
        rate: p₀.
        schedule: one of `SCHEDULES`.
    """
    if schedule == "cosine":
        return rate * (1 + math.cos(math.pi * update / total)) / 2
    return 1.0 if update == collect else rate * (1 - update / total)


@dataclass
class Window:
    """What is collected of one layer while a window is open.

    Attributes:
        candidates: `[k]` places in the flattened weight: those with the largest gradient in the window's first step.
        total: `[k]` sums of their gradients over the steps.
        squares: `[k]` sums of their squares.
    """

    candidates: Tensor
    total: Tensor
    squares: Tensor

    @classmethod
    def opened(cls, gradient: Tensor, count: int) -> Window:
        """By the first step's gradient `[out, in]`; `count` is k."""
        flat = gradient.flatten()
        candidates = flat.abs().topk(count).indices
        return cls(candidates, flat[candidates], flat[candidates] ** 2)

    def add(self, gradient: Tensor) -> None:
        """Another step's gradient of the candidates, `[k]`."""
        self.total += gradient
        self.squares += gradient**2


def exchanged(places: Tensor, values: Tensor, window: Window, *, count: int) -> tuple[Tensor, Tensor]:
    """Which weights give way to which candidates.

    The `count` weights with the smallest |δ| are dropped; the `count` candidates with the largest |sum| that are none
    of the rest are grown. What is dropped and grown at once is left out: it stays as it was. Of equal ones the first.

    Args:
        places: `[k]` of the weights that train, in the flattened weight.
        values: `[k]` their δ.
        window: of the layer.
        count: how many, at most k.

    Returns:
        `[j]` positions in `places` that are free, and `[j]` positions in `window.candidates` that take them.
    """
    dropped = values.abs().argsort(stable=True)[:count]
    stays = torch.ones_like(places, dtype=torch.bool)
    stays[dropped] = False
    score = window.total.abs().masked_fill(torch.isin(window.candidates, places[stays]), -1.0)
    grown = score.argsort(descending=True, stable=True)[:count]
    free = dropped[~torch.isin(places[dropped], window.candidates[grown])]
    taking = grown[~torch.isin(window.candidates[grown], places[dropped])]
    return free, taking


def moments_of(
    window: Window, taking: Tensor, *, steps: int, betas: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """AdamW's moments of weights that were candidates for some steps: as if every step had had their mean.

    m = mean(g) · (1 − β₁ᵃ) and v = mean(g²) · (1 − β₂ᵃ) with a steps of the window: three with the sum −2.1, the sum
    of squares 1.55 and β = (0.9, 0.999) give −0.1897 and 0.00154845.
    """
    first, second = betas
    mean, square = window.total[taking] / steps, window.squares[taking] / steps
    return mean * (1 - first**steps), square * (1 - second**steps)


def aged_step(
    values: Tensor,
    moments: tuple[Tensor, Tensor],
    ages: Tensor,
    *,
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    decay: float,
) -> Tensor:
    """AdamW's step with an age for each weight, as SpIEL's own optimizer makes it.

    δ ← (δ − η · m √(1 − β₂ᵃ) / ((√v + ε)(1 − β₁ᵃ)))(1 − η λ): ε stands before the correction, and the decay, towards
    the pretrained weight, after the step.

    Args:
        values: `[k]` δ before the step.
        moments: m and v, `[k]`, the step's gradient already in them.
        ages: `[k]` updates of each weight, this one included.
        learning_rate, betas, epsilon, decay: η, (β₁, β₂), ε and λ.

    Returns:
        `[k]` δ after it.
    """
    mean, square = moments
    age = ages.double()  # in float32 1 − 0.999 has four digits
    scale = ((1 - betas[0] ** age) / (1 - betas[1] ** age).sqrt()).to(values.dtype)
    moved = values - learning_rate * mean / ((square.sqrt() + epsilon) * scale)
    return moved * (1 - learning_rate * decay)
