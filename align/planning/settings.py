"""Keys `rows` and `gpus` of `align plan` as types."""

from __future__ import annotations

from dataclasses import dataclass

from align.core.config import check_choice
from align.core.errors import UserError


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
    intra_gb_per_s: float = 250.0
    inter_gb_per_s: float = 25.0
    host_gb: float = 1000.0
    host_gb_per_s: float = 20.0
    disk_gb_per_s: float = 3.0
    runtime_gb: float | None = 1.5

    def check(self) -> None:
        """Refuses numbers that describe no machine."""
        check_choice("gpus.device", self.device, ("cuda", "cpu"))
        for name, value in vars(self).items():
            least = 0 if name.startswith(("host", "disk", "runtime")) else 1e-9
            if isinstance(value, int | float) and value < least:
                raise UserError(f"gpus.{name}={value} is too small.")
        if self.count % self.nodes:
            raise UserError(
                f"gpus.count={self.count} is not divisible by gpus.nodes={self.nodes}: give the GPUs of all machines."
            )
