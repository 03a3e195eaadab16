"""Where reference log-probs come from: the policy with its adapter off, a frozen model, or the cache of either."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import numpy as np
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import TrainingArguments

from align.distributed.wrappers import expected_wrapper
from align.longseq.forward import pair_logps, tokens_read
from align.longseq.logps import sum_by_index
from align.longseq.moving import to_device
from align.longseq.parallel import SequenceParallel
from align.longseq.shared_prefix import SharedPrefixBatch
from align.models.precision import Precision
from losses.types import PairLogps

Forward = Callable[[nn.Module, SharedPrefixBatch], PairLogps]


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
    """The policy itself with its adapter switched off; costs no memory."""

    adapter: PeftModel
    forward: Forward
    usage: ReferenceUsage = field(default_factory=ReferenceUsage)

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        """Reference log-probs of the batch, without a graph."""
        self.usage.tokens += tokens_read(policy, batch)
        with torch.no_grad(), _evaluating(policy), self._off():
            return self.forward(policy, batch)

    @cached_property
    def _layers(self) -> list[BaseTunerLayer | AuxiliaryTrainingWrapper]:
        kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
        return [module for module in self.adapter.modules() if isinstance(module, kinds)]

    @contextmanager
    def _off(self) -> Iterator[None]:
        """PEFT's `disable_adapter` without its survey of all layers, which takes longer than switching them."""
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)


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
        self.usage.tokens += tokens_read(self.model, batch)
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


def reference_forward(
    arguments: TrainingArguments, *, parallel: SequenceParallel | None, logits_chunk: int
) -> Forward:
    """The policy's forward in the policy's precision; see `computing_precision` for the reference's weights.

    Args:
        arguments: of the run: its precision.
        parallel: this process's place in its sequence-parallel group; None without.
        logits_chunk: tokens whose vocabulary logits exist at once.
    """
    forward = partial(pair_logps, parallel=parallel, chunk_size=logits_chunk)
    return autocast_forward(forward, computing_precision(arguments).autocast)


def computing_precision(arguments: TrainingArguments) -> Precision:
    """In which types the policy computes, once it is wrapped; a reference in others would give it a margin at step 0.

    With `trainer.bf16` torch's autocast computes products in bf16, from weights that stay as they are. DeepSpeed casts
    all parameters instead, normalisation and embeddings included, and uses no autocast; FSDP2 does both.

    Args:
        arguments: of the run, in its launch.
    """
    lowered = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    wrapper = expected_wrapper(arguments)
    if wrapper == "DeepSpeed":
        return Precision(weights=_engine_dtype(arguments) or lowered)
    return Precision(weights=lowered if wrapper == "FSDP" else None, autocast=lowered)


def keeps_float32_copy(arguments: TrainingArguments) -> bool:
    """Whether the wrapper's optimizer steps a float32 copy of low weights: DeepSpeed's always, FSDP2's as trained."""
    wrapper = expected_wrapper(arguments)
    return wrapper == "DeepSpeed" or (wrapper == "FSDP" and (arguments.bf16 or arguments.fp16))


def _engine_dtype(arguments: TrainingArguments) -> torch.dtype | None:
    """What a DeepSpeed configuration enables by itself, whatever `trainer` says."""
    config = getattr(arguments.deepspeed_plugin, "deepspeed_config", None) or {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if config.get(name, {}).get("enabled") is True:
            return dtype
    return None


def autocast_forward(forward: Forward, dtype: torch.dtype | None) -> Forward:
    """`forward` under autocast, or as it is where `dtype` is None."""
    if dtype is None:
        return forward

    def run(model: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        with torch.autocast(batch.rows[0].input_ids.device.type, dtype=dtype):
            return forward(model, batch)

    return run


def sum_turns(logps: PairLogps, owner: Tensor | np.ndarray, prompts: int) -> PairLogps:
    """Sums the rows of one prompt's turns: log-probs over turns add up (LongPO, section 3.2).

    Turns with the chosen log-probs −3, −4 and −5, the first two of prompt 0 and the last of prompt 1: −7 and −5.

    Args:
        logps: one row a turn, `[n]` and `[n, M]`.
        owner: `[n]` the prompt that each turn belongs to: 0, 0, 1 in the example. A tensor or an array, on the CPU too.
        prompts: B.
    """
    index = to_device(owner, logps.chosen.device)

    def add(values: Tensor) -> Tensor:
        if values.dim() == 1:
            return sum_by_index(values, index, prompts)
        columns = [sum_by_index(column, index, prompts) for column in values.unbind(1)]
        return torch.stack(columns, dim=1) if columns else values.new_zeros(prompts, 0)

    return PairLogps(
        chosen=add(logps.chosen),
        rejected=add(logps.rejected),
        chosen_length=add(logps.chosen_length),
        rejected_length=add(logps.rejected_length),
        weighted=None if logps.weighted is None else add(logps.weighted),
        weight=None if logps.weight is None else add(logps.weight),
        collision=None if logps.collision is None else add(logps.collision),
    )
