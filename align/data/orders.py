"""`data.order`: in which order an epoch's rows are read, and so which rows make up a step.

An order is told the rows' lengths and how many prompts a step has, and not how many processes there are: a run that
goes on with other processes reads the same steps. How a step's rows are then shared out among the processes is
`balance`, which leaves the step's loss as it is (`align/training/even_groups.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from align.core.config import check_choice
from align.core.errors import UserError

BALANCES = ("none", "tokens", "pairs", "work")  # of `data.order.balance`


class Order(Protocol):
    """An order of rows; a frozen dataclass, whose fields are the keys of `data.order`.

    Attributes:
        balance: of `BALANCES`: by which cost a step's rows are shared out evenly; `none` leaves them as they come.
    """

    @property
    def balance(self) -> str:
        """See the class."""

    def check(self) -> None:
        """Raises UserError where a key is out of its range."""

    def check_mixture(self, *, whole_epochs: bool) -> None:
        """Raises UserError where a run would read the places of `data.mix` in other shares than those asked for.

        Args:
            whole_epochs: whether the run ends where an epoch ends; every order reads each row once an epoch.
        """

    def arrange(self, tokens: np.ndarray, *, prompts: int, rng: np.random.Generator) -> np.ndarray:
        """`[n]` the rows' numbers in the order in which they are read, each once.

        Args:
            tokens: `[n]` of each row, its prompt once and every answer.
            prompts: of a step: the first so many rows are the first step's, and so on; the last step of an epoch has
                what is left.
            rng: seeded by the run's seed and the epoch, the same on every process.
        """


def check_order(order: Order) -> None:
    """Refuses a `balance` that is not known; an order of another package may have any.

    Raises:
        UserError: names the key.
    """
    check_choice("data.order.balance", str(getattr(order, "balance", None)), BALANCES)


@dataclass(frozen=True)
class Shuffled:
    """Rows at random; see hydra_conf/data/order/shuffled.yaml."""

    balance: str = "none"

    def check(self) -> None:
        """See `Order`."""
        check_order(self)

    def check_mixture(self, *, whole_epochs: bool) -> None:
        """See `Order`; every stretch of an epoch is like the whole, up to chance."""

    def arrange(self, tokens: np.ndarray, *, prompts: int, rng: np.random.Generator) -> np.ndarray:
        """See `Order`."""
        return rng.permutation(len(tokens))


@dataclass(frozen=True)
class Buckets:
    """Steps of rows that are about as long, at random; see hydra_conf/data/order/buckets.yaml.

    With `steps=2` and 2 prompts a step, rows of 9, 1, 5 and 2 tokens, drawn in this order, give the steps 1 + 2 and
    5 + 9, one of which comes first by chance. Rows that fill no step are those that were drawn last: any.
    """

    steps: int = 50
    balance: str = "work"

    def check(self) -> None:
        """See `Order`."""
        check_order(self)
        if self.steps < 1:
            raise UserError(
                f"data.order.steps={self.steps} must be a number of steps, from 1 on: so many are drawn and sorted "
                "at a time."
            )

    def check_mixture(self, *, whole_epochs: bool) -> None:
        """See `Order`; every stretch of an epoch is like the whole, up to chance."""

    def arrange(self, tokens: np.ndarray, *, prompts: int, rng: np.random.Generator) -> np.ndarray:
        """See `Order`."""
        drawn = rng.permutation(len(tokens))
        whole = len(drawn) // prompts * prompts
        found = []
        for start in range(0, whole, self.steps * prompts):
            some = drawn[start : min(start + self.steps * prompts, whole)]
            steps = some[np.argsort(tokens[some], kind="stable")].reshape(-1, prompts)
            found.append(rng.permutation(steps).reshape(-1))
        return np.concatenate([*found, drawn[whole:]])


@dataclass(frozen=True)
class Grow:
    """Short rows first, in cycles (Grow-P2 of Dataset Decomposition, arXiv 2405.13226); see .../order/grow.yaml.

    Rows of `2^k … 2^(k+1) − 1` tokens are one bucket, and a step has rows of one bucket (of two neighbouring ones where
    the shorter one's rows run out). A cycle has an equal part of every bucket's steps. Its next step is drawn: of a
    bucket with probability in proportion to the steps that the cycle has of it at its start, times its odds, which
    are `odds` times those of the next longer bucket; a bucket without steps left drops out. Nothing is drawn twice.
    """

    odds: float = 2.0
    cycles: int = 8
    shortest: int = 256
    balance: str = "work"

    def check(self) -> None:
        """See `Order`."""
        check_order(self)
        if not (self.odds > 0 and math.isfinite(self.odds)):
            raise UserError(
                f"data.order.odds={self.odds:g} must be a number above 0: how much likelier a bucket is than the next "
                "longer one, 2 as in Grow-P2."
            )
        for key, what in (("cycles", "cycles, 8 as in the paper"), ("shortest", "tokens, a power of two")):
            if getattr(self, key) < 1:
                raise UserError(
                    f"data.order.{key}={getattr(self, key)} must be a number of {what}, from 1 on."
                )

    def check_mixture(self, *, whole_epochs: bool) -> None:
        """See `Order`."""
        if not whole_epochs:
            raise UserError(
                "data.order=grow reads short rows first, so that a run which ends within an epoch has other shares of "
                "data.mix than those asked for: set trainer.num_train_epochs to a whole number and leave "
                "trainer.max_steps out, or set data/order=shuffled or buckets."
            )

    def arrange(self, tokens: np.ndarray, *, prompts: int, rng: np.random.Generator) -> np.ndarray:
        """See `Order`."""
        drawn = rng.permutation(len(tokens))
        whole = len(drawn) // prompts * prompts
        bucket = np.floor(np.log2(np.maximum(tokens, self.shortest))).astype(np.int64)
        some = drawn[:whole]
        steps = some[np.argsort(bucket[some], kind="stable")].reshape(-1, prompts)
        found = [steps[cycle] for cycle in self.cycles_of(bucket[steps].max(axis=1, initial=0), rng)]
        return np.concatenate([*(step.reshape(-1) for step in found), drawn[whole:]])

    def cycles_of(self, bucket: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """The steps' numbers in the order of each cycle.

        Args:
            bucket: `[steps]` k of each step's longest row.
            rng: see `arrange`.
        """
        parts: list[list[np.ndarray]] = [[] for _ in range(self.cycles)]
        kinds = np.unique(bucket)
        for kind in kinds:
            steps = rng.permutation(np.flatnonzero(bucket == kind))
            # Equal parts, which the few steps of a rare bucket are spread over, beginning with any cycle.
            cycle = (
                np.arange(len(steps)) * self.cycles // len(steps) + rng.integers(self.cycles)
            ) % self.cycles
            for number, part in enumerate(parts):
                part.append(steps[cycle == number])
        odds = self.odds ** -(kinds - kinds.min(initial=0)).astype(np.float64)
        return [_drawn(part, odds, rng) for part in parts]


def draw_buckets(counts: np.ndarray, odds: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Which bucket each step is of, without replacement: 4 + 4 + 4 steps with odds 4, 2, 1 and `default_rng(0)` give
    1 0 0 0 1 2 1 1 0 2 2 2.

    Args:
        counts: `[buckets]` steps.
        odds: `[buckets]`; a bucket's weight is its steps at the start times its odds.
        rng: draws once a step.
    """
    left, weights, found = counts.copy(), counts * odds, []
    for _ in range(int(counts.sum())):
        open_ones = np.where(left > 0, weights, 0.0)
        found.append(int(rng.choice(len(left), p=open_ones / open_ones.sum())))
        left[found[-1]] -= 1
    return found


def _drawn(parts: list[np.ndarray], odds: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The steps of a cycle, `parts` by bucket, in the order in which their buckets are drawn."""
    rest = [iter(part) for part in parts]
    counts = np.array([len(part) for part in parts], dtype=np.int64)
    return np.array([next(rest[k]) for k in draw_buckets(counts, odds, rng)], dtype=np.int64)
