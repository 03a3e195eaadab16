"""What a loss remembers from step to step: told the step's rewards before its losses, kept in every checkpoint."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from losses.labels import kinds_of
from losses.types import LossOutput, PairLogps


@runtime_checkable
class LossState(Protocol):
    """A setting of a loss that learns from the steps; the trainer finds it by these methods, whatever its class."""

    def observe(self, policy: PairLogps, output: LossOutput) -> None:
        """Takes in all prompts of a global step, once, before their losses are computed.

        Args:
            policy: their log-probs, detached; the same on every process.
            output: what the loss makes of them as the state stands; its rewards are detached.
        """

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON can have it: a resumed run goes on with the same bits."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class RewardShift:
    """BCO's δ: half the mean reward of desirable answers plus half that of undesirable ones (arXiv 2404.04656).

    Both are means over all answers of all steps so far, the present one included. Rewards 0.3 and 0.1 of desirable
    answers and −0.4 of an undesirable one give δ = (0.2 − 0.4) / 2 = −0.1. As long as only one kind has been seen, δ
    is its mean; before any answer it is 0.
    """

    def __init__(self) -> None:
        """Nothing seen."""
        self._totals: Tensor | None = (
            None  # `[2, 2]`: sum and number of desirable answers, of undesirable ones
        )

    @property
    def value(self) -> Tensor | float:
        """δ, a scalar without a graph, on the device of the rewards."""
        if self._totals is None:
            return 0.0
        sums, counts = self._totals[:, 0], self._totals[:, 1]
        return (sums / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)

    def observe(self, policy: PairLogps, output: LossOutput) -> None:
        """See `LossState`."""
        rewards = torch.cat([output.chosen_reward[:, None], output.rejected_reward], dim=1)
        kinds = kinds_of(policy)
        seen = [
            torch.stack([torch.where(mask, rewards, 0.0).sum(), mask.sum()])
            for mask in (kinds.desirable, kinds.undesirable)
        ]
        added = torch.stack(seen)
        # Only what a checkpoint has brought still lies on the CPU.
        self._totals = added if self._totals is None else self._totals.to(added) + added

    def state_dict(self) -> dict[str, Any]:
        """See `LossState`."""
        return {"totals": None if self._totals is None else self._totals.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See `LossState`."""
        totals = state["totals"]
        self._totals = None if totals is None else torch.tensor(totals, dtype=torch.float64)
