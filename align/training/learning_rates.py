"""Parameters with a learning rate of their own, as the adapter names them (LoRA+)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from transformers import Trainer, TrainingArguments


def optimizer_with_rates(
    policy: Any, arguments: TrainingArguments, rates: Mapping[str, float], *, decayed: Collection[str]
) -> tuple[type[Any], dict[str, Any]] | None:
    """The optimizer's class and keywords as the Trainer takes them; None where all parameters have one rate.

    Of parameters `A` and `B` with the rates `{B: 16}` at `learning_rate=1e-4` the groups learn at 1e-4 and 1.6e-3, and
    the schedule scales both alike.

    Args:
        policy: the model with its adapter.
        arguments: of the run.
        rates: factors by parameter name; others have 1.
        decayed: names of the parameters with weight decay (`Trainer.get_decay_parameter_names`).
    """
    if not rates:
        return None
    kind, keywords = Trainer.get_optimizer_cls_and_kwargs(arguments, policy)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            groups[rates.get(name, 1.0), arguments.weight_decay if name in decayed else 0.0].append(weight)
    named = [
        {"params": weights, "lr": arguments.learning_rate * rate, "weight_decay": decay}
        for (rate, decay), weights in groups.items()
    ]
    return kind, {**keywords, "params": named}
