"""Seconds of an optimizer step: floating-point work, and the bytes that processes exchange.

**Work** of a row of T = P + Σa tokens, M parameters of the layers that a token goes through (of E
experts k), V·H in the head, A = pairs of attention; a scan along the row is not counted:

- forward of the layers 2·M·T, attention 4·Q·A a layer (two products over heads·D; A = P²/2 + Σ a·(P + a/2), since the
  prompt is shared: P²/2 once and not for each answer; in a layer with a window only the pairs within it), head 2·V·H·S
  for S scored tokens;
- backward of the layers 2 × the forward, with frozen weights under LoRA 1 × (no weight gradients), attention 2.5 × (the
  scores are computed again: five products), head 2 × and its logits once more;
- checkpointing adds a forward of the layers, `full` one of attention too; `mlp_chunk` the projections twice more;
- a reference or the policy's short context adds its forward (the latter with its backward).

A GPU does 1/n of it at degree n; under ulysses the rank with the most heads has ⌈heads/n⌉·n/heads of the mean
attention. Seconds = work / (peak · MFU), with a share of its own for attention where it is known.

**Exchange** a layer and pass, bytes sent by a GPU with t tokens: ulysses t·(2Q + 2K')·b·(n−1)/n (q, k, v there, the
output back; as many again in the backward pass and in the recomputation), gather 2·K·t·(n−1)·b (forward,
recomputation; the backward reduce-scatters as much). Groups are consecutive ranks: to the n − p ranks outside
a node of p GPUs goes the share (n − p)/(n − 1), over the slower network. The mix of both (simulated only): ulysses
among u ranks, then each gathers the keys and values of its heads from n/u groups.

**Wrapper** a step of A micro-batches, bytes by a GPU over (N−1)/N, of G gradients, the weights T that train and all
weights P in their types: DDP 2·G, an all-reduce once a step; ZeRO-1 2·G + T, the updated weights gathered; ZeRO-2
2·A·G + T, an all-reduce in every micro-batch (DeepSpeed reduces whole buckets and keeps its share); FSDP2 and ZeRO-3
A·(2·P + G), weights gathered for forward and backward, gradients reduce-scattered. A split reference adds P for each of
its forwards. Across nodes it goes at a GPU's own share of the network, inter_bandwidth.

**Host**: offloaded checkpoints go out and come back beside the computation: what is longer counts. `zero3_offload`
fetches the node's weights in every pass and steps on the host: 28 bytes of memory traffic a parameter at HOST_TRAFFIC.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass

from align.distributed.names import DEEPSPEED, SHARDED
from align.longseq.ulysses import share_heads
from align.planning.activations import own_tokens
from align.planning.architecture import Architecture
from align.planning.job import Job, Machine, Rows, Strategy
from align.planning.states import (
    gradient_bytes,
    reference_shares,
    reference_weight,
    states,
    weight_bytes,
)

HOST_TRAFFIC = (
    100e9  # bytes/s of a node's memory that DeepSpeed's CPU Adam reaches (an estimate; not measured here)
)
STEP_BYTES = 28  # read and written for each parameter: weight, gradient, two states in fp32


@dataclass(frozen=True)
class Time:
    """Of one optimizer step, on the slowest GPU.

    Attributes:
        compute, exchange, wrapper, host: seconds.
        flops: floating-point operations of all GPUs.
        exchange_bytes, wrapper_bytes: sent by one GPU.
        prompts: of the global step.
    """

    compute: float
    exchange: float
    wrapper: float
    host: float
    flops: float
    exchange_bytes: float
    wrapper_bytes: float
    prompts: int

    @property
    def total(self) -> float:
        """Seconds; nothing is assumed to overlap but offloaded checkpoints."""
        return self.compute + self.exchange + self.wrapper + self.host

    @property
    def per_prompt(self) -> float:
        """Seconds for each prompt of the step."""
        return self.total / self.prompts

    def to_json(self) -> dict[str, float]:
        """Every part, and the totals."""
        return asdict(self) | {"total": self.total, "per_prompt": self.per_prompt}


def step_time(model: Architecture, job: Job, strategy: Strategy, machine: Machine) -> Time:
    """One optimizer step of `job.accumulation` micro-batches on every group."""
    rows, groups = job.rows.average(), machine.count // strategy.degree
    matrices, attention = work(model, job, strategy, rows)
    products, scores = machine.rates
    slow = attention_imbalance(model, strategy)
    compute = job.accumulation * (matrices / products + attention * slow / scores) / strategy.degree
    inside, outside = exchange_bytes(model, job, strategy, machine, rows)
    exchange = inside / machine.intra_bandwidth + outside / machine.inter_bandwidth
    wrapped = wrapper_bytes(model, job, strategy.wrapper, machine.count)
    network = machine.intra_bandwidth if machine.nodes == 1 else machine.inter_bandwidth
    shares = reference_shares(job, strategy.wrapper, machine.count, local=machine.per_node)
    read = _reference_bytes(model, job, rows, shares, strategy.wrapper)
    among = machine.intra_bandwidth if shares <= machine.per_node else machine.inter_bandwidth
    return Time(
        compute=compute,
        exchange=job.accumulation * exchange,
        wrapper=wrapped / network + read / among,
        host=_host(model, job, strategy, machine, rows, compute),
        flops=job.accumulation * groups * (matrices + attention),
        exchange_bytes=job.accumulation * (inside + outside),
        wrapper_bytes=wrapped + read,
        prompts=groups * rows.prompts * job.accumulation,
    )


def attention_imbalance(model: Architecture, strategy: Strategy) -> float:
    """The slowest rank's attention over the mean: 28 heads on 8 ranks are 4 on one, 4 · 8 / 28 = 1.14."""
    u = strategy.ulysses
    return math.ceil(model.heads / u) * u / model.heads


def work(model: Architecture, job: Job, strategy: Strategy, rows: Rows) -> tuple[float, float]:
    """FLOPs of a micro-batch, reference and short context included: of matrix products, and of attention."""
    levers = strategy.levers
    recompute = 0.0 if levers.checkpointing == "none" else 1.0
    again = 1.0 if levers.checkpointing == "full" else 0.0
    sequence = rows.rows * rows.prompt if job.nll_scope == "sequence" else 0
    matrices, attention = forward_work(model, rows, rows.scored + sequence)
    head = 2.0 * model.head_parameters * (rows.scored + sequence)
    layers = matrices - head
    backward = 1.0 + model.trainable / (model.parameters - model.trainable) if model.lora else 2.0
    tiling = 0.0
    if levers.mlp_chunk is not None and recompute:
        tiling = 2 * 2.0 * model.projections * rows.tokens
    total = layers * (1 + backward + recompute) + tiling + head * (2 + (1.0 if model.lora else 2.0))
    total_attention = attention * (1 + 2.5 + again)
    if job.policy_short:
        short, short_attention = work(
            model, _without_short(job), strategy, rows.short() if rows.short_prompt else rows
        )
        total, total_attention = total + short, total_attention + short_attention
    if job.reference != "none":
        for read in _reference_rows(job, rows):
            matrices, attention = forward_work(model, read, read.scored)
            total, total_attention = total + matrices, total_attention + attention
    return total, total_attention


def _without_short(job: Job) -> Job:
    """The job of the short context by itself, which has no reference and no shorter one."""
    return Job(job.rows, job.precision, accumulation=job.accumulation)


def _reference_rows(job: Job, rows: Rows) -> list[Rows]:
    """What the reference reads in a micro-batch: the rows, their short contexts, or both."""
    if job.policy_short:
        return [rows, rows.short()]
    return [rows.short() if job.reference_short else rows]


def forward_work(model: Architecture, rows: Rows, scored: int) -> tuple[float, float]:
    """FLOPs of one forward: matrices with the head over `scored` tokens, and attention."""
    matrices = 2.0 * model.active * rows.tokens
    alike = Counter(zip(model.patterns, model.query_widths, strict=True))
    attention = 4.0 * sum(
        layers * width * rows.pairs(pattern)
        for (pattern, width), layers in alike.items()
        if pattern is not None
    )
    return matrices + 2.0 * model.head_parameters * scored, attention


def exchange_bytes(
    model: Architecture, job: Job, strategy: Strategy, machine: Machine, rows: Rows
) -> tuple[float, float]:
    """Bytes that a GPU sends for one micro-batch in the exchange: to GPUs of its own node, and to others."""
    passes = 2.0 if strategy.levers.checkpointing == "none" else 3.0
    reads = [(rows, passes)]
    if job.policy_short:
        reads.append((rows.short(), passes))
    if job.reference != "none":
        reads += [(read, 1.0) for read in _reference_rows(job, rows)]
    inside = outside = 0.0
    for read, times in reads:
        each = times * model.attending * own_tokens(read.tokens, strategy.degree) * job.precision.products
        ulysses, gather = (each * width for width in _sent(model, strategy))
        # Ulysses groups are consecutive ranks; a gather group steps over them.
        span = min(strategy.ulysses, machine.per_node)
        crossing = (strategy.ulysses - span) / max(1, strategy.ulysses - 1)
        groups = max(1, min(strategy.gather, machine.per_node // span))
        apart = (strategy.gather - groups) / max(1, strategy.gather - 1)
        inside += ulysses * (1 - crossing) + gather * (1 - apart)
        outside += ulysses * crossing + gather * apart
    return inside, outside


def _sent(model: Architecture, strategy: Strategy) -> tuple[float, float]:
    """Numbers per own token, layer and pass: in the all-to-alls, and in the all-gather (of what the rank then has)."""
    u, g = strategy.ulysses, strategy.gather
    copies = float(model.kv_width)
    if u > 1:
        shares = share_heads(model.heads, model.kv_heads, u)
        copies = sum(share.kv[1] - share.kv[0] for share in shares) * model.head_dim
    return (2.0 * model.query_width + 2.0 * copies) * (u - 1) / u, 2.0 * copies * (g - 1)


def wrapper_bytes(model: Architecture, job: Job, wrapper: str, processes: int) -> float:
    """Bytes that a GPU sends in one optimizer step for weights and gradients; see **Wrapper** above.

    1e9 parameters in fp32 that all train, on 4 processes: their gradients are 4 GB, and DDP sends 2 · 4 GB · 3/4 =
    6 GB. With `trainer.bf16` ZeRO-1 sends (2 · 2 GB + 2 GB) · 3/4 = 4.5 GB, ZeRO-2 in four micro-batches 13.5 GB.

    Args:
        model, job: of the run.
        wrapper: its name.
        processes: N.
    """
    if wrapper == "none" or processes == 1:
        return 0.0
    sent_share = (processes - 1) / processes
    whole = states(model, job, "zero1" if wrapper in DEEPSPEED else wrapper, 1)
    gradients = model.trainable * gradient_bytes(model, job.precision, wrapper)
    updated = model.trainable * weight_bytes(model, job.precision, wrapper)
    if wrapper == "fsdp2":
        # Weights and gradients travel in the type of the products.
        low = job.precision.autocast and job.precision.weights != 2
        moved = 2.0 * model.parameters * job.precision.products + (gradients / 2 if low else gradients)
        return job.accumulation * moved * sent_share
    if wrapper in SHARDED:
        return job.accumulation * (2 * whole.weights + gradients) * sent_share
    if wrapper == "zero2":
        return (2 * job.accumulation * gradients + updated) * sent_share
    return (2 * gradients + (updated if wrapper == "zero1" else 0.0)) * sent_share


def _reference_bytes(model: Architecture, job: Job, rows: Rows, shares: int, wrapper: str) -> float:
    """Bytes that a GPU receives in one optimizer step for the weights of a reference split into `shares`."""
    whole = model.parameters * reference_weight(job.precision, wrapper) * (shares - 1) / shares
    return job.accumulation * len(_reference_rows(job, rows)) * whole


def _host(
    model: Architecture, job: Job, strategy: Strategy, machine: Machine, rows: Rows, compute: float
) -> float:
    """Seconds that offloading adds to what is computed meanwhile."""
    seconds = 0.0
    if strategy.levers.offload != "none":
        moved = 2.0 * model.layers * model.hidden * job.precision.under(strategy.wrapper).stream
        moved *= job.accumulation * own_tokens(rows.tokens, strategy.degree)
        speed = machine.host_bandwidth
        if strategy.levers.offload == "disk":
            speed = min(speed, machine.disk_bandwidth / machine.per_node)
        seconds += max(0.0, moved / speed - compute)
    if strategy.wrapper == "zero3_offload":
        whole = states(model, job, "zero3", 1)
        fetched = (2 * whole.weights + whole.gradients) / machine.count
        seconds += job.accumulation * fetched / machine.host_bandwidth
        seconds += model.trainable / machine.nodes * STEP_BYTES / HOST_TRAFFIC
    return seconds
