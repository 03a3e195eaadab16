"""Where reference log-probs come from: the policy with its adapter off, a frozen model, or the cache of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn

from align.core.config import check_choice
from align.core.errors import UserError
from align.longseq.logps import sum_by_index
from align.longseq.shared_prefix import SharedPrefixBatch
from align.models.settings import ModelSettings, RopeSettings
from losses.types import PairLogps

Forward = Callable[[nn.Module, SharedPrefixBatch], PairLogps]


@dataclass(frozen=True)
class ReferenceSettings:
    """Group `reference`; see hydra_conf/reference/default.yaml."""

    source: str | None = None
    model: str | None = None
    rope: str = "policy"
    sharding: str | None = None
    cache: str | None = None
    fill_only: bool = False


def resolve_source(settings: ReferenceSettings, *, needs: str, lora: bool, method: str) -> str:
    """`none`, `adapter_off` or `frozen`: as set, or what the method and the parameters that train call for.

    Args:
        settings: group `reference`.
        needs: the method's `needs.reference`.
        lora: whether the policy has an adapter.
        method: its name, for messages.

    Raises:
        UserError: the settings contradict each other, the method or the model.
    """
    source = settings.source
    check_choice("reference.source", str(source or "none"), ("none", "adapter_off", "frozen"))
    check_choice("reference.rope", settings.rope, ("policy", "checkpoint"))
    if needs == "none":
        if settings.fill_only:
            raise UserError(
                f"reference.fill_only: method={method} has no reference, so there is nothing to fill."
            )
        return "none"
    if settings.fill_only and settings.cache is None:
        raise UserError("reference.fill_only fills a cache: name its folder, reference.cache=FOLDER.")
    if source == "none":
        raise UserError(
            f"method={method} needs a reference, but reference.source=none: "
            "set reference.source=adapter_off (with LoRA) or frozen."
        )
    if source is None:
        own = settings.model is not None or settings.rope == "checkpoint"
        return "adapter_off" if lora and not own else "frozen"
    if source == "adapter_off":
        _check_adapter_off(settings, lora=lora)
    return source


def _check_adapter_off(settings: ReferenceSettings, *, lora: bool) -> None:
    """The policy without its adapter is the starting model as the policy loaded it, and nothing else."""
    if not lora:
        raise UserError(
            "reference.source=adapter_off needs an adapter to switch off: set model.lora.r, or reference.source=frozen."
        )
    if settings.model is not None:
        raise UserError(
            "reference.model names another model: it goes with reference.source=frozen, not adapter_off."
        )
    if settings.rope == "checkpoint":
        raise UserError(
            "reference.rope=checkpoint goes with reference.source=frozen: adapter_off reads with the policy's RoPE."
        )


def reference_model(settings: ReferenceSettings, policy: ModelSettings) -> ModelSettings:
    """The model settings of the reference: the starting model's, or those of `reference.model`, never an adapter.

    Args:
        settings: group `reference`.
        policy: group `model`.
    """
    model = replace(policy, lora=replace(policy.lora, r=0))
    if settings.model is not None:
        model = replace(model, path=settings.model, revision=None)
    return replace(model, rope=RopeSettings()) if settings.rope == "checkpoint" else model


@dataclass
class ReferenceUsage:
    """What a reference has cost this process so far.

    Attributes:
        tokens: tokens that the reference model has read.
        cached: prompts (turns, on short contexts) whose log-probs came from the cache.
    """

    tokens: int = 0
    cached: int = 0


class Reference(Protocol):
    """`(policy, batch)` → reference log-probs of the batch, without a graph."""

    @property
    def usage(self) -> ReferenceUsage:
        """What it has cost so far."""

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        """`[B]` and `[B, M]`, in the order of the prompts."""


@dataclass(frozen=True)
class AdapterOff:
    """The policy itself with its LoRA adapter switched off; costs no memory."""

    adapter: PeftModel
    forward: Forward
    usage: ReferenceUsage = field(default_factory=ReferenceUsage)

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        """Reference log-probs of the batch, without a graph."""
        self.usage.tokens += batch.num_tokens
        with torch.no_grad(), _evaluating(policy), self.adapter.disable_adapter():
            return self.forward(policy, batch)


@dataclass(frozen=True)
class Frozen:
    """A model of its own that never trains, loaded when it is first needed.

    Attributes:
        load: gives the model in evaluation mode, on the device of the batches.
        forward: gives its log-probs.
        usage: what it has cost.
    """

    load: Callable[[], nn.Module]
    forward: Forward
    usage: ReferenceUsage = field(default_factory=ReferenceUsage)

    @cached_property
    def model(self) -> nn.Module:
        """The model."""
        return self.load()

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        """Reference log-probs of the batch, without a graph."""
        self.usage.tokens += batch.num_tokens
        with torch.no_grad():
            return self.forward(self.model, batch)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within the block no dropout: a reference is a function of its input."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def autocast_forward(forward: Forward, dtype: torch.dtype | None) -> Forward:
    """`forward` under autocast, as accelerate runs a policy with `trainer.bf16` or `fp16`.

    A reference in another precision than the policy's would give a margin to a policy that has not moved.
    """
    if dtype is None:
        return forward

    def run(model: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        with torch.autocast(batch.rows[0].input_ids.device.type, dtype=dtype):
            return forward(model, batch)

    return run


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
