"""The load-balancing loss of a mixture of experts as a part of a step's loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from align.longseq.balance import RouterWatch, Routing
from align.training.method_settings import Needs
from align.training.weighting import prompt_weights

METRIC = "aux_loss"  # as TRL names it: without its coefficient


class StepBalance:
    """Adds `coefficient` times the mean balance loss of a step's micro-batches, each weighted as its prompts are.

    A step of 6 prompts in micro-batches of 4 and 2 (over all processes) with balance losses 2.4 and 2.1 adds
    coefficient · (4 · 2.4 + 2 · 2.1) / 6. Evaluation leaves it out.

    Args:
        model: the policy, before any wrapper but PEFT.
        coefficient: `model.moe.balance`; 0 does nothing.
        needs: of the method, whose `weighting` says how prompts are weighted in a step's loss.
        degree: of sequence parallelism, whose ranks read the same prompts.
    """

    def __init__(self, model: nn.Module, coefficient: float, *, needs: Needs, degree: int) -> None:
        self.coefficient, self.weighting, self.degree = coefficient, needs.weighting, degree
        self._watch = RouterWatch(model) if coefficient else None
        self._routing: Routing | None = None
        self._sums: Tensor | None = None

    def start(self, inputs: dict[str, Any]) -> Routing | None:
        """Takes in a micro-batch's routing; None where nothing trains, or nothing is to be balanced."""
        self._routing = None
        if self._watch is not None and torch.is_grad_enabled():
            weight = int(prompt_weights(inputs, self.weighting).sum()) / self.degree
            device = inputs["batch"].rows[0].input_ids.device
            self._routing = Routing(self._watch.router, inputs["real"].tolist(), weight, device)
        return self._routing

    def add(self, loss: Tensor, total: Tensor | int | None) -> Tensor:
        """The micro-batch's loss with its part of the balance loss.

        Args:
            loss: a scalar, of which the mean over processes is the micro-batch's part of the step's loss.
            total: sum of the weights in the global step; None counts this micro-batch alone.
        """
        if self._routing is None or self._routing.loss is None:
            return loss
        value, weight = self._routing.loss, self._routing.weight
        seen = torch.stack([value.detach() * weight, weight])
        self._sums = seen if self._sums is None else self._sums + seen
        share = weight / (weight if total is None else total)
        return loss + (self.coefficient * share * value).to(loss.dtype)

    def pop(self) -> dict[str, float]:
        """The mean balance loss since the last call, the same on every process; empty without."""
        sums, self._sums = self._sums, None
        return {} if sums is None else {METRIC: (sums[0] / sums[1]).item()}
