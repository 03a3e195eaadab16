"""What is asked of a run beside its rows: precision, wrapper, levers and machine, as plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from align.planning.rows import MaskedRows as MaskedRows
from align.planning.rows import OwnRows as OwnRows
from align.planning.rows import Rows as Rows
from align.planning.rows import as_read as as_read

GB = 1e9


@dataclass(frozen=True)
class Precision:
    """Bytes of one number: `Precision(4, autocast=True)` has weights in four bytes and their products in two.

    Attributes:
        weights: as the model is loaded (`model.dtype`): 4 or 2.
        autocast: `trainer.bf16` or `fp16`: products in two bytes over weights in four.
        quantised: `model.quantization=nf4`: linear layers in four bits.
    """

    weights: int = 4
    autocast: bool = False
    quantised: bool = False

    def under(self, wrapper: str) -> Precision:
        """DeepSpeed turns the whole model to bf16 where torch would use autocast; its master copy is a state."""
        if wrapper.startswith("zero") and self.autocast:
            return Precision(2, quantised=self.quantised)
        return self

    @property
    def products(self) -> int:
        """Bytes of what matrix products take and give."""
        return 2 if self.autocast else self.weights

    @property
    def stream(self) -> int:
        """Bytes of the residual stream, which autocast leaves as the embedding gives it: in the weights' type."""
        return self.weights

    @property
    def norm_copy(self) -> int:
        """Bytes of the fp32 copy of its input that RMSNorm makes; 0 where the input is fp32 already."""
        return 0 if self.stream == 4 else 4


@dataclass(frozen=True)
class Levers:
    """Group `memory`; `prefetch`: layers' inputs that are brought back ahead of the backward pass."""

    checkpointing: str = "keep_attention"
    logits_chunk: int = 1024
    offload: str = "none"
    mlp_chunk: int | None = None
    prefetch: int = 1


@dataclass(frozen=True)
class Strategy:
    """How the run is spread: `Strategy("fsdp2", "ulysses", 4)` has 4 processes share each row, and FSDP2 all of them.

    Attributes:
        wrapper: none, ddp, fsdp2, zero1, zero2, zero3 or zero3_offload.
        exchange: none, ulysses, gather; or mixed, which is only simulated (benchmarks/plan_scale.py): ulysses
            among `inner` ranks of a node, gather across the groups of them.
        degree: n, processes that share a row.
        levers: of memory.
        inner: see `exchange`.
    """

    wrapper: str = "none"
    exchange: str = "none"
    degree: int = 1
    levers: Levers = field(default_factory=Levers)
    inner: int = 1

    @property
    def ulysses(self) -> int:
        """Ranks among which heads are spread; 1 where they are not."""
        return {"ulysses": self.degree, "mixed": self.inner}.get(self.exchange, 1)

    @property
    def gather(self) -> int:
        """Ranks from which keys and values are gathered; 1 where they are not."""
        return {"gather": self.degree, "mixed": self.degree // self.inner}.get(self.exchange, 1)


@dataclass(frozen=True)
class Machine:
    """The devices of a run.

    Attributes:
        device: `cuda` or `cpu`.
        count: GPUs (CPU: processes) in all.
        nodes: machines; `align plan` takes GPUs that are spread evenly.
        memory: bytes of one GPU that a run may use (CPU: a process's share of the host's).
        flops: peak dense FLOP/s of one GPU in the type of the products.
        mfu: share of the peak that the model's products reach.
        attention_mfu: share of it that attention reaches; None is `mfu`.
        intra_bandwidth: bytes/s from a GPU to others of its node, one direction.
        inter_bandwidth: bytes/s from a GPU to other nodes.
        host_memory: bytes of a node's memory.
        host_bandwidth: bytes/s from a GPU to its host.
        disk_bandwidth: bytes/s of a node's disk.
        disk_memory: bytes that are free on a node's disk; infinite where nobody says.
        runtime: bytes that a process needs before it has a model: context, kernels, communication buffers.
    """

    device: str
    count: int
    nodes: int
    memory: float
    flops: float
    mfu: float
    intra_bandwidth: float
    inter_bandwidth: float
    host_memory: float
    host_bandwidth: float
    disk_bandwidth: float
    runtime: float
    attention_mfu: float | None = None
    disk_memory: float = math.inf

    @property
    def rates(self) -> tuple[float, float]:
        """FLOP/s that a GPU reaches in the model's products, and in attention."""
        return self.flops * self.mfu, self.flops * (self.attention_mfu or self.mfu)

    @property
    def per_node(self) -> int:
        """GPUs of one machine, of the largest where they are spread unevenly."""
        return math.ceil(self.count / self.nodes)


@dataclass(frozen=True)
class Job:
    """What does not change with the strategy.

    Attributes:
        rows: of one micro-batch.
        precision: bytes.
        optimizer_slots: numbers an optimizer keeps for each that trains: AdamW 2, RMSprop and momentum 1, SGD 0.
        slot_bytes: bytes of one; None is that of the weight.
        reference: `none`, `adapter_off` or `frozen`; `cached` rows read none.
        reference_sharding: `reference.sharding`; None leaves it to the wrapper.
        reference_short: whether it reads the short context rather than the rows (both, with `policy_short`).
        policy_short: whether the policy reads the short context too.
        nll_scope: `sequence` scores the prompt as well.
        accumulation: micro-batches a step.
    """

    rows: Rows
    precision: Precision
    optimizer_slots: int = 2
    slot_bytes: int | None = None
    reference: str = "none"
    reference_sharding: str | None = None
    reference_short: bool = False
    policy_short: bool = False
    nll_scope: str = "none"
    accumulation: int = 1
