"""Keys `rows` and `gpus` of `align plan` as types, and the optimizers that it knows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from align.core.config import check_choice
from align.core.errors import UserError

# Optimizers of transformers → numbers kept for each that trains, and bytes of one (None: the weight's). Of torch and
# transformers as tests count them (Adafactor keeps a row and a column of a matrix), of bitsandbytes by its sources.
OPTIMIZERS: dict[str, tuple[int, int | None]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused"), (2, None)),
    **dict.fromkeys(("rmsprop", "adagrad"), (1, None)),
    **dict.fromkeys(("sgd", "adafactor"), (0, None)),
    **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit"), (2, 1)),
    "paged_adamw_32bit": (2, 4),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), (3, 4)),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), (3, 1)),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit"), (1, 4)),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), (1, 1)),
}


FASTEST, LENGTH = "fastest", "length"
GOALS = (FASTEST, LENGTH)  # of `goal`


class UnknownOptimizerError(UserError):
    """An optimizer whose state the formulas do not know."""


def optimizer_slots(name: str) -> tuple[int, int | None]:
    """Numbers that `trainer.optim` keeps for each that trains, and bytes of one: AdamW's two are as wide as the weight.

    Raises:
        UnknownOptimizerError: nothing is known of what it keeps.
    """
    if name not in OPTIMIZERS:
        raise UnknownOptimizerError(
            f"trainer.optim={name}: what it keeps of each weight is not known here, so its memory cannot be predicted: "
            f"plan with one of {', '.join(OPTIMIZERS)}."
        )
    return OPTIMIZERS[name]


@dataclass(frozen=True)
class RowSettings:
    """Key `rows`; see hydra_conf/plan.yaml."""

    prompt: int | None = None
    mean_prompt: int | None = None
    answer: int = 512
    rejected: int = 1
    short_prompt: int = 1024


@dataclass(frozen=True)
class GpuSettings:
    """Group `gpus`; see hydra_conf/gpus/a100_80gb.yaml."""

    device: str = "cuda"
    count: int = 8
    nodes: int = 1
    memory_gb: float | None = 80.0
    peak_tflops: float = 312.0
    mfu: float = 0.4
    attention_mfu: float | None = None
    intra_gb_per_s: float = 250.0
    inter_gb_per_s: float = 25.0
    host_gb: float = 1000.0
    host_gb_per_s: float = 20.0
    disk_gb_per_s: float = 3.0
    disk_gb: float | None = None
    runtime_gb: float | None = 1.5

    def check(self) -> None:
        """Refuses numbers that describe no machine."""
        check_choice("gpus.device", self.device, ("cuda", "cpu"))
        for name, value in vars(self).items():
            least = 0 if name.startswith(("host", "disk", "runtime")) else 1e-9
            if not isinstance(value, int | float):
                continue
            if not value >= least:
                raise UserError(f"gpus.{name}={value} is too small.")
            if math.isinf(value):
                raise UserError(f"gpus.{name}={value} has no end: give what the machine has.")
        if self.count % self.nodes:
            raise UserError(
                f"gpus.count={self.count} is not divisible by gpus.nodes={self.nodes}: give the GPUs of all machines."
            )
