"""Memory per process by what it is for, and its peak over the phases of a step.

Weights of 16 GB are there throughout; beside them the head may need 3 GB in one phase and the MLP's backward pass 5 GB
in another. They never meet, so that the peak is 21 GB and not 24.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from align.distributed.names import SHARDED
from align.planning.activations import Activations, activations
from align.planning.architecture import Architecture
from align.planning.job import Job, Machine, Strategy
from align.planning.states import States, gathered, reference_shares, reference_weight, states

BROADCAST = 250 << 20  # bytes of a message of DDP's start


@dataclass(frozen=True)
class Memory:
    """Bytes per process at the peak of a step.

    Attributes:
        weights, gradients, optimizer, reference: at the peak; gradients that come later are not counted.
        checkpoints: what layers keep from the forward to the backward pass, as far as it is there at the peak.
        transient: of the phase that makes the peak: `phase` names it (mlp, attention, layer where a layer is
            counted whole, head, reference, embedding, optimizer or start); wrapper's buffers are in `buffers`.
        buffers: gradient buckets and gathered weights of the wrapper.
        runtime: a process before it has a model.
        phase: see `transient`.
        host: bytes in the node's memory, of all its processes: offloaded states and checkpoints.
        disk: bytes on the node's disk.
    """

    weights: float
    gradients: float
    optimizer: float
    reference: float
    checkpoints: float
    transient: float
    buffers: float
    runtime: float
    phase: str
    host: float = 0.0
    disk: float = 0.0

    @property
    def total(self) -> float:
        """Bytes at the peak."""
        states = (self.weights, self.gradients, self.optimizer, self.reference)
        return sum(states) + self.checkpoints + self.transient + self.buffers + self.runtime

    def to_json(self) -> dict[str, float | str]:
        """Every number above, and the total."""
        return asdict(self) | {"total": self.total}


@dataclass(frozen=True)
class _Moment:
    """A moment of the step that can be the peak: its phase, and the bytes that are not there all the time."""

    phase: str
    gradients: float
    checkpoints: float
    transient: float


def predict(model: Architecture, job: Job, strategy: Strategy, machine: Machine) -> Memory:
    """The largest of these moments; weights, optimizer state, reference and buffers are there in all of them:

    - the head's chunk, the first layer that goes backward (the model's last), the reference's forward: all
      checkpoints are there, and of the gradients none, with accumulation all;
    - the last layer that goes backward: all gradients, one checkpoint;
    - the token embedding's gradient, dense, beside the tied head's;
    - the start of DDP, when rank 0 sends everybody its weights, in two messages at a time (torch's
      `_broadcast_coalesced`), before there are gradients' buckets and optimizer state;
    - the optimizer's step: all gradients, and what it computes with: on a GPU (`foreach`) one more copy of what
      trains, on a CPU three of the largest weight.
    """
    fixed = states(model, job, strategy.wrapper, machine.count, local=machine.per_node)
    acts = activations(model, job, strategy)
    moments = _moments(model, job, strategy, machine, fixed, acts)
    peak = max(moments, key=lambda moment: moment.gradients + moment.checkpoints + moment.transient)
    per_node = machine.per_node
    return Memory(
        weights=fixed.weights,
        gradients=peak.gradients,
        optimizer=fixed.optimizer,
        reference=fixed.reference,
        checkpoints=peak.checkpoints,
        transient=peak.transient,
        buffers=fixed.buffers,
        runtime=machine.runtime,
        phase=peak.phase,
        host=per_node * (fixed.host + (acts.offloaded if strategy.levers.offload == "host" else 0.0)),
        disk=per_node * acts.offloaded if strategy.levers.offload == "disk" else 0.0,
    )


def _moments(
    model: Architecture, job: Job, strategy: Strategy, machine: Machine, fixed: States, acts: Activations
) -> list[_Moment]:
    """See `predict`, which lists them."""
    before = fixed.gradients if job.accumulation > 1 else 0.0
    each = (fixed.gradients - 4.0 * model.collected) / max(1, model.trainable)
    # Before the head's gradient is a tensor of its own it is the sum that autograd holds.
    whole = strategy.wrapper not in SHARDED
    precision = job.precision.under(strategy.wrapper)
    each_head = precision.weights if whole else precision.products
    head = float(model.head_parameters * each_head) if model.head_trains else 0.0
    first = before if before and whole else before + head
    cast = 2.0 * model.trainable if job.precision.autocast and strategy.wrapper in ("none", "ddp") else 0.0
    tied = head if model.tied and model.embedding_trains else 0.0
    # Counted layers' peak may be another moment of the layer: then this is more than there is.
    attention, layer = acts.attention, acts.layer
    if machine.device == "cuda":
        attention, layer = (0.0, max(layer, acts.kernel)) if layer else (max(attention, acts.kernel), 0.0)
    later = fixed.gradients + tied * bool(before)
    moments = [
        _Moment("head", before, acts.checkpoints, acts.head + cast),
        _Moment("mlp", first, acts.checkpoints, acts.mlp),
        _Moment("attention", first, acts.checkpoints, attention),
        _Moment("layer", first, acts.checkpoints, layer),
        _Moment("layer", later, acts.last_checkpoint, layer),
        _Moment("mlp", later, acts.last_checkpoint, acts.mlp),
        _Moment("attention", later, acts.last_checkpoint, attention),
        _Moment(
            "reference",
            before,
            acts.checkpoints,
            acts.reference + cast + _gathered(model, job, strategy, machine),
        ),
        _Moment("embedding", later, 0.0, tied),
    ]
    if strategy.wrapper == "ddp":
        sent = min(fixed.weights, 2 * BROADCAST) - fixed.optimizer - fixed.buffers
        moments.append(_Moment("start", 0.0, 0.0, max(0.0, sent)))
    if machine.device == "cuda":
        step = fixed.optimizer / max(1, job.optimizer_slots)
    else:
        weight = model.layer_trainable / 4 if model.counter is None else model.largest_weight
        step = 3 * each * max(model.head_parameters * model.head_trains, weight)
    return [*moments, _Moment("optimizer", fixed.gradients, 0.0, step if job.optimizer_slots else 0.0)]


def _gathered(model: Architecture, job: Job, strategy: Strategy, machine: Machine) -> float:
    """Bytes of a split reference that are whole during its forward."""
    shares = reference_shares(job, strategy.wrapper, machine.count, local=machine.per_node)
    return 0.0 if shares == 1 else gathered(model) * reference_weight(job.precision, strategy.wrapper)
