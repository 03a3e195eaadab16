"""Where reference log-probs come from: nowhere, the policy with its adapter off, or a frozen copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor, nn

from align.errors import UserError
from align.longseq.logps import sum_by_index
from align.longseq.shared_prefix import SharedPrefixBatch
from losses.types import PairLogps

Forward = Callable[[nn.Module, SharedPrefixBatch], PairLogps]


@dataclass(frozen=True)
class ReferenceSettings:
    """Group `reference`; see hydra_conf/reference/default.yaml."""

    source: str | None = None
    model: str | None = None


def resolve_source(settings: ReferenceSettings, *, needs: str, lora: bool, method: str) -> str:
    """`none`, `adapter_off` or `frozen`: as set, or what the method and the parameters that train call for.

    Raises:
        UserError: the setting contradicts the method or the model.
    """
    source = settings.source
    if source not in (None, "none", "adapter_off", "frozen"):
        raise UserError(f"reference.source={source} is not known: use none, adapter_off or frozen.")
    if needs == "none":
        return "none"
    if source == "none":
        raise UserError(
            f"method={method} needs a reference, but reference.source=none: "
            "set reference.source=adapter_off (with LoRA) or frozen."
        )
    if source == "adapter_off" and not lora:
        raise UserError(
            "reference.source=adapter_off needs an adapter to switch off: set model.lora.r, or reference.source=frozen."
        )
    if source == "adapter_off" and settings.model is not None:
        raise UserError(
            "reference.model names another model: it goes with reference.source=frozen, not adapter_off."
        )
    if source is None:
        return "adapter_off" if lora and settings.model is None else "frozen"
    return source


class NoReference:
    """For methods that need none."""

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> None:
        """Always None."""


@dataclass(frozen=True)
class AdapterOff:
    """The policy itself with its LoRA adapter switched off; costs no memory."""

    adapter: PeftModel
    forward: Forward

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        """Reference log-probs of the batch, without a graph."""
        with torch.no_grad(), self.adapter.disable_adapter():
            return self.forward(policy, batch)


@dataclass(frozen=True)
class Frozen:
    """A model of its own that never trains."""

    model: nn.Module
    forward: Forward

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        """Reference log-probs of the batch, without a graph."""
        with torch.no_grad():
            return self.forward(self.model, batch)


Reference = NoReference | AdapterOff | Frozen


def sum_turns(logps: PairLogps, owner: Tensor, prompts: int) -> PairLogps:
    """Sums the rows of one prompt's turns: log-probs over turns add up (LongPO, section 3.2).

    Args:
        logps: one row a turn, `[n]` and `[n, M]`.
        owner: `[n]` the prompt that each turn belongs to.
        prompts: B.
    """

    def add(values: Tensor) -> Tensor:
        if values.dim() == 1:
            return sum_by_index(values, owner, prompts)
        columns = [sum_by_index(column, owner, prompts) for column in values.unbind(1)]
        return torch.stack(columns, dim=1) if columns else values.new_zeros(prompts, 0)

    return PairLogps(
        chosen=add(logps.chosen),
        rejected=add(logps.rejected),
        chosen_length=add(logps.chosen_length),
        rejected_length=add(logps.rejected_length),
    )
