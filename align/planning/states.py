"""Bytes per process of what lives as long as the run: weights, gradients, optimizer, reference.

P parameters of which G train, N processes, w bytes a weight (`model.dtype`), g bytes a gradient, s optimizer slots:

| wrapper | weights | gradients | optimizer | beside them |
|---|---|---|---|---|
| none | P·w | G·w (and 4 bytes for each weight whose gradient an adapter collects) | s·G·w | |
| DDP | P·w | G·w | s·G·w | G·w buckets (gradients are copied, `gradient_as_bucket_view` is off) |
| FSDP2 | P·w/N | G·w/N | s·G·w/N | gathered: embedding, head and two layers; one layer's whole gradients |
| ZeRO-1 | P·w | G·g | (s+1)·4·G/N | a bucket of 5e8 gradients |
| ZeRO-2 | P·w | G·g/N | (s+1)·4·G/N | two such buckets |
| ZeRO-3 | P·w/N | G·g/N | (s+1)·4·G/N | up to 1e9 gathered weights, a bucket |
| ZeRO-3 offload | on the host | on the host | on the host | up to 1e9 gathered weights, a bucket |

The experts of a layer are gathered at once, where they are more than 1e9.
(ZeRO: Rajbhandari et al. 2020, arXiv:1910.02054, section 3: 2P + 2P + 12P bytes for Adam in mixed precision; bucket
and live parameters are DeepSpeed's defaults.) DeepSpeed keeps a master copy of what trains in 4 bytes, in every stage
and whatever the weights' type, in fp32 a second one beside equal weights; it is counted with the optimizer. With
`trainer.bf16` it makes the model bf16, w = g = 2; else w is the model's and g = 4, for bf16 weights too
(`tests/planning/test_deepspeed.py` holds all this against DeepSpeed's own tensors). Under autocast without
DeepSpeed torch keeps a bf16 copy of every weight that trains until the forward pass ends (2·G), counted as
transient.
A frozen reference is P·w, and P·w/N where it is split (`reference.sharding`). It is in the types that the policy
computes in: with `trainer.bf16` its w is 2 under DeepSpeed and FSDP2.
QLoRA packs linear layers at 4.127 bits a weight (arXiv:2305.14314, section 3, double quantisation). LoRA's own weights
are fp32 (PEFT's `autocast_adapter_dtype`).
"""

from __future__ import annotations

from dataclasses import dataclass

from align.core.config import check_choice
from align.distributed.names import DEEPSPEED, WRAPPERS
from align.planning.architecture import Architecture
from align.planning.job import Job, Precision
from align.reference.settings import resolve_sharding

NF4_BYTES = 4.127 / 8
BUCKET = 5e8  # DeepSpeed's reduce_bucket_size, elements
LIVE = 1e9  # DeepSpeed's stage3_max_live_parameters, elements


@dataclass(frozen=True)
class States:
    """Bytes per process; `host` is what offload puts into the node's memory, per process."""

    weights: float
    gradients: float
    optimizer: float
    reference: float
    buffers: float
    host: float = 0.0


def reference_shares(job: Job, wrapper: str, processes: int, *, local: int | None = None) -> int:
    """Over how many processes a frozen reference's weights are split; 1 where they are whole, or there is none.

    16 processes, 8 on a machine: 1, 16 or 8 with `reference.sharding` none, full or hybrid.

    Args:
        job, wrapper: of the run.
        processes: in all.
        local: processes of one machine, among which `hybrid` splits; None is all of them.
    """
    if job.reference != "frozen":
        return 1
    sharding = resolve_sharding(
        job.reference_sharding, wrapper=wrapper, processes=processes, quantised=job.precision.quantised
    )
    return {"none": 1, "full": processes, "hybrid": local or processes}[sharding]


def states(
    model: Architecture, job: Job, wrapper: str, processes: int, *, local: int | None = None
) -> States:
    """The table above for one process.

    Args:
        model, job, wrapper: of the run.
        processes: N.
        local: processes of one machine; None is all of them.

    Raises:
        UserError: a wrapper that the table does not have.
    """
    check_choice("wrapper", wrapper, WRAPPERS)
    precision = job.precision
    low = wrapper in DEEPSPEED and precision.autocast
    weights = _weights(model, precision, low=low)
    trained = gradient_bytes(model, precision, wrapper)
    gradients = model.trainable * trained
    slot = job.slot_bytes or (4.0 if wrapper in DEEPSPEED else trained)
    master = 4.0 if wrapper in DEEPSPEED else 0.0
    optimizer = model.trainable * (job.optimizer_slots * slot + master)
    shares = reference_shares(job, wrapper, processes, local=local)
    reference = _reference(model, precision, wrapper) / shares if job.reference == "frozen" else 0.0
    bucket = min(model.trainable, BUCKET) * trained
    live = max(min(model.parameters, LIVE), model.layer_experts) * (2.0 if low else precision.weights)
    if wrapper in ("none", "ddp"):
        buckets = gradients if wrapper == "ddp" else 0.0
        return States(weights, gradients + 4.0 * model.collected, optimizer, reference, buckets)
    if wrapper == "zero1":
        return States(weights, gradients, optimizer / processes, reference, bucket)
    if wrapper == "zero2":
        return States(weights, gradients / processes, optimizer / processes, reference, 2 * bucket)
    split = (weights / processes, gradients / processes, optimizer / processes)
    if wrapper == "zero3":
        return States(*split, reference, live + bucket)
    if wrapper == "zero3_offload":
        return States(0.0, 0.0, 0.0, reference, live + bucket, host=sum(split))
    return States(*split, reference, (gathered(model) + model.layer_trainable) * precision.products)


def weight_bytes(model: Architecture, precision: Precision, wrapper: str) -> float:
    """Bytes of one weight that trains: adapters are fp32, but for DeepSpeed with `trainer.bf16`."""
    if wrapper in DEEPSPEED and precision.autocast:
        return 2.0
    return 4.0 if model.lora else float(precision.weights)


def gradient_bytes(model: Architecture, precision: Precision, wrapper: str) -> float:
    """Bytes of one gradient as it is kept from one micro-batch to the next, and sent: g of the table above."""
    if wrapper in DEEPSPEED:
        return 2.0 if precision.autocast else 4.0
    return weight_bytes(model, precision, wrapper)


def gathered(model: Architecture) -> int:
    """Parameters that FSDP2 has whole at a time in a forward: embedding, head and two layers, with all their experts.

    Of 8.0e9 with 32 layers of 0.22e9 each: 8.0e9 − 30 · 0.22e9 = 1.4e9.
    """
    return model.parameters - model.all_layers + 2 * model.layer_parameters


def _weights(model: Architecture, precision: Precision, *, low: bool) -> float:
    """Bytes of the whole policy; adapters are fp32."""
    adapters = model.trainable if model.lora else 0
    base = model.parameters - adapters
    each = 2 if low else precision.weights
    if not precision.quantised:
        return base * each + adapters * (2 if low else 4)
    linear = model.linear_parameters - adapters
    return linear * NF4_BYTES + (base - linear) * each + adapters * 4


def reference_weight(precision: Precision, wrapper: str) -> float:
    """Bytes of a weight of a frozen reference: as the policy's, once the wrapper has cast them."""
    cast = precision.autocast and wrapper not in ("none", "ddp")
    return 2.0 if cast else float(precision.weights)


def _reference(model: Architecture, precision: Precision, wrapper: str) -> float:
    """A frozen copy of the starting model."""
    each = reference_weight(precision, wrapper)
    adapters = model.trainable if model.lora else 0
    base = model.parameters - adapters
    if precision.quantised:
        linear = model.linear_parameters - adapters
        return linear * NF4_BYTES + (base - linear) * each
    return base * each
