"""What is asked of a run: rows, precision, wrapper, levers and machine, as plain numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar

from align.longseq.patterns import FULL, Pattern, seen_pairs
from align.models.settings import LIBRARY, MASKED

GB = 1e9


@dataclass(frozen=True)
class Rows:
    """A micro-batch of one process group, in tokens.

    `Rows(prompt=1000, answers=(100, 50), prompts=2)`: two prompts with a chosen answer of 100 and a rejected one of 50,
    2,300 tokens of which 300 are scored.

    Attributes:
        prompt: P, tokens of the longest prompt.
        answers: a_0 (chosen), a_1 … a_M (rejected), tokens of each.
        short_prompt: tokens of the short context; 0 where the method reads none.
        prompts: how many such prompts a micro-batch has.
        copies: rows that one of them takes: 1, or as many as it has answers where each is behind a copy of its own.
        mean_prompt: tokens of the average prompt, for time; None is `prompt`.
        shared: whether they go through our attention, which can be tiled and sharded.
    """

    shared: ClassVar[bool] = True
    prompt: int
    answers: tuple[int, ...]
    short_prompt: int = 0
    prompts: int = 1
    mean_prompt: int | None = None
    copies: int = 1

    @property
    def rows(self) -> int:
        """Rows of a micro-batch: prompts · copies."""
        return self.prompts * self.copies

    @property
    def tokens(self) -> int:
        """T: rows · (P + Σ a), where P + Σ a is a shared-prefix row."""
        return self.rows * (self.prompt + sum(self.answers))

    @property
    def scored(self) -> int:
        """Answer tokens."""
        return self.rows * sum(self.answers)

    @property
    def at_once(self) -> int:
        """Tokens of one call of the model: all."""
        return self.tokens

    @property
    def mask(self) -> int:
        """Entries of a mask: there is none."""
        return 0

    def head_at_once(self, nll_scope: str) -> int:
        """Tokens that the head scores in one call: the answers', and with `sequence` (LongPO's NLL) the prompt's."""
        return self.head(nll_scope)

    def head(self, nll_scope: str) -> int:
        """Tokens that the head scores."""
        return self.scored + (self.rows * self.prompt if nll_scope == "sequence" else 0)

    def pairs(self, pattern: Pattern = FULL) -> int:
        """(query, key) pairs that a layer's attention works on; in a full one about P²/2 + Σ a·(P + a/2) a row."""
        answers = sum(seen_pairs(pattern, (self.prompt, self.prompt + a)) for a in self.answers)
        return self.rows * (seen_pairs(pattern, (0, self.prompt)) + answers)

    def short(self) -> Rows:
        """The same answers on the short context."""
        return type(self)(self.short_prompt, self.answers, prompts=self.prompts, copies=self.copies)

    def average(self) -> Rows:
        """The average prompt in the longest one's place."""
        return replace(self, prompt=self.mean_prompt or self.prompt, mean_prompt=None)


@dataclass(frozen=True)
class OwnRows(Rows):
    """The same where each answer is read behind its whole prompt, one after the other (`model.attention=library`).

    `OwnRows(prompt=1000, answers=(100, 50), prompts=2)`: four rows, 4,300 tokens, of which the model reads 1,100
    at once.
    """

    shared: ClassVar[bool] = False

    @property
    def tokens(self) -> int:
        """rows · Σ (P + a)."""
        return self.rows * (len(self.answers) * self.prompt + sum(self.answers))

    @property
    def at_once(self) -> int:
        """P + max a: the longest row."""
        return self.prompt + max(self.answers)

    def head_at_once(self, nll_scope: str) -> int:
        """The longest answer, and with `sequence` the prompt, which the chosen answer's row scores."""
        return max(self.answers) + (self.prompt if nll_scope == "sequence" else 0)

    def pairs(self, pattern: Pattern = FULL) -> int:
        """In a full layer about Σ (P + a)²/2 a row."""
        return self.rows * sum(seen_pairs(pattern, (0, self.prompt + a)) for a in self.answers)


@dataclass(frozen=True)
class MaskedRows(Rows):
    """The same where the library's attention reads each prompt with its answers by a mask (`model.attention=masked`).

    `MaskedRows(prompt=1000, answers=(100, 50), prompts=2)`: two rows of 1,150 tokens, read one after the other, each
    with a mask of 1,322,500 entries.
    """

    shared: ClassVar[bool] = False

    @property
    def at_once(self) -> int:
        """P + Σ a: one prompt with its answers."""
        return self.prompt + sum(self.answers)

    @property
    def mask(self) -> int:
        """Entries of a row's mask."""
        return self.at_once**2

    def head_at_once(self, nll_scope: str) -> int:
        """One prompt's answers, and with `sequence` the prompt."""
        return sum(self.answers) + (self.prompt if nll_scope == "sequence" else 0)

    def pairs(self, pattern: Pattern = FULL) -> int:
        """(P + Σ a)² a row: those that are hidden are computed too."""
        return self.rows * self.mask


_READ: dict[str, type[Rows]] = {LIBRARY: OwnRows, MASKED: MaskedRows}


def as_read(rows: Rows, attention: str) -> Rows:
    """The rows as `model.attention` has them read: packed by our attention, or in the library's ways."""
    return _READ[attention](**vars(rows)) if attention in _READ else rows


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
