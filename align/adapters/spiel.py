"""SpIEL: single weights train, and which ones is chosen anew every few steps by the gradients of all."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from align.adapters.adapter import Still
from align.adapters.library import Library
from align.core.config import check_choice, check_seed
from align.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor, nn
    from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

MOST_RANK = 65_536
SCHEDULES = ("linear", "cosine")
# Wrappers that leave an adapter's weights and the optimizer's moments whole on every process.
WHOLE = ("none", "ddp")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd")


@dataclass(frozen=True)
class Spiel(Still):
    """SpIEL-AG (arXiv 2401.16405) on PEFT's SHiRA; see hydra_conf/adapter/spiel.yaml and reselecting.py.

    Attributes:
        r: as many weights as LoRA of this rank has: `r · (m + n)` of an `m × n` weight.
        target_modules: last names of the modules of which weights train; `[all-linear]`.
        every: S, steps from one choice to the next.
        collect: γ, steps over which gradients are collected before the first choice; later one more.
        rate: p₀, the share of the weights that is given up at a choice, before the schedule lowers it.
        schedule: of the share over the run, one of `SCHEDULES`.
        seed: of the places at the start.
        modules_to_save: ends of the names of modules that train in full beside it.
    """

    r: int
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    every: int = 20
    collect: int = 5
    rate: float = 0.2
    schedule: str = "linear"
    seed: int = 42
    modules_to_save: list[str] = field(default_factory=list)

    kind = "spiel"
    removable = True
    takes_four_bits = False
    whole_gradients = True

    @property
    def trains_checkpoint_weights(self) -> bool:
        """Where modules train in full beside it."""
        return bool(self.modules_to_save)

    def check(self) -> None:
        """Refuses numbers and words that no run can have."""
        if not 1 <= self.r <= MOST_RANK:
            raise UserError(f"adapter.r={self.r} is no rank: give a number from 1 to {MOST_RANK}.")
        if not 1 <= self.collect < self.every:
            raise UserError(
                f"adapter.collect={self.collect} does not fit adapter.every={self.every}: gradients are collected "
                "over 1 to every − 1 steps."
            )
        if not 0.0 < self.rate <= 1.0:
            raise UserError(f"adapter.rate={self.rate} is no share: give a number above 0 and up to 1.")
        check_choice("adapter.schedule", self.schedule, SCHEDULES)
        check_seed(self.seed)
        self._library.check()

    def check_options(self) -> None:
        """See `Adapter`."""
        self._library.check_options()

    def takes_wrapper(self, wrapper: str) -> bool:
        """In those that leave its weights and their moments whole on every process."""
        return wrapper in WHOLE

    def check_launch(self, wrapper: str, arguments: TrainingArguments) -> None:
        """Refuses optimizers without AdamW's moments, and wrappers that split what belongs to a weight."""
        optimizer = getattr(arguments.optim, "value", str(arguments.optim))
        if optimizer not in OPTIMIZERS:
            raise UserError(
                f"adapter=spiel sets the moments of the weights that it chooses, and trainer.optim={optimizer} keeps "
                f"others than torch's AdamW: use {', '.join(OPTIMIZERS)}."
            )
        if arguments.fp16:
            raise UserError(
                "adapter=spiel adds up gradients over steps, which trainer.fp16=true scales by a factor that changes: "
                "set trainer.bf16=true, or neither."
            )
        if not self.takes_wrapper(wrapper) or arguments.deepspeed_plugin is not None:
            raise UserError(
                f"adapter=spiel moves weights and their moments between places, which {wrapper} splits over processes: "
                "launch with ddp."
            )

    def with_modules(self, names: Sequence[str]) -> Spiel:
        """See `Adapter`."""
        return replace(self, modules_to_save=[*self.modules_to_save, *names])

    def add(self, model: PreTrainedModel) -> PeftModel:
        """See `Adapter`; the places are drawn for each layer by its name."""
        from peft.tuners.shira.layer import Linear

        from align.adapters.library import put_on

        config: Any = self._library.config_for(model)
        config.mask_fn = None  # PEFT would draw the same places in every layer of a size
        policy = put_on(model, config)
        for name, layer in policy.named_modules():
            if isinstance(layer, Linear):
                for adapter, values in layer.shira_weight.items():
                    sizes = (layer.out_features, layer.in_features)
                    seed = zlib.crc32(f"{self.seed}/{name}".encode())
                    layer.shira_indices[adapter] = _drawn(sizes, len(values), seed, device=values.device)
        return policy

    def callbacks(self, policy: nn.Module) -> Sequence[TrainerCallback]:
        """See `Adapter`."""
        from align.adapters.reselecting import Reselection

        return [
            Reselection(
                policy, every=self.every, collect=self.collect, rate=self.rate, schedule=self.schedule
            )
        ]

    @property
    def _library(self) -> Library:
        return Library("SHIRA", self.target_modules, self.modules_to_save, {"r": self.r})


def _drawn(sizes: tuple[int, int], count: int, seed: int, *, device: torch.device) -> Tensor:
    """`[2, count]` rows and columns of as many places of a matrix, none of them twice; of a counted one no values."""
    import numpy as np
    import torch

    if device.type == "meta":
        return torch.empty(2, count, dtype=torch.int32, device=device)
    places = np.random.default_rng(seed).choice(sizes[0] * sizes[1], count, replace=False)
    return torch.from_numpy(np.stack(np.divmod(places, sizes[1])).astype(np.int32)).to(device)
