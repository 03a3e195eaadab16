"""What of a step's traffic hides behind computation: a step as tasks on a GPU and on its network, simulated.

A micro-batch is L layers forward, the head, and L layers backward. Each layer is, forward, its products before
attention, the exchange there, attention, the exchange back, and its other products; backward the same the other way
round, with the layer's forward made again first where it is checkpointed. Each of them is a task on the GPU or on the
network:

- **exchange** (ulysses' all-to-all, the all-gather of keys and values): attention waits for it, and what follows
  attention for the way back, as the toolkit runs it; nothing of the same layer is computed meanwhile;
- **weights** (FSDP2, ZeRO-3): layer i + 1 is gathered while layer i is computed, for the forward and for the backward;
- **gradients**: each layer's are sent once its backward is done, while the next layer goes backward: in every
  micro-batch (FSDP2, ZeRO-2, ZeRO-3) or in the last one (DDP, ZeRO-1); ZeRO-1 and ZeRO-2 gather the updated weights at
  the end.

A GPU does one task at a time and the network carries one message at a time, of those that are ready the one that has
been so longest. Each message has a latency (`LATENCY`, an assumption) and its bytes over the bandwidth; bytes, work and
rates are those of `align/planning/time.py`. Two tasks of 3 seconds, one of the GPU and one of the network, take 3 where
neither waits for the other, and 6 where one does.

**exposed** is the time in which the GPU waits: seconds of the step less those of its computation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from align.distributed.names import SHARDED
from align.planning.architecture import Architecture
from align.planning.job import Job, Machine, Strategy
from align.planning.states import gradient_bytes, states, weight_bytes
from align.planning.time import attention_imbalance, exchange_bytes, forward_work, step_time, work

LATENCY = 20e-6  # seconds of a message, whatever its size (an assumption; not measured here)
GPU, NETWORK = "gpu", "network"
WINDOW = 24  # tasks that are issued at a time: those of some three layers


@dataclass(frozen=True)
class Task:
    """Something that the GPU or the network does, once all that it waits for is done.

    Attributes:
        where: `gpu` or `network`.
        seconds: that it takes.
        after: numbers of the tasks that it waits for.
    """

    where: str
    seconds: float
    after: tuple[int, ...] = ()


@dataclass
class Timeline:
    """Tasks in the order in which they are issued; a task waits for earlier ones alone."""

    tasks: list[Task] = field(default_factory=list)

    def add(self, where: str, seconds: float, *after: int | None) -> int:
        """Appends a task; its number. What it waits for may be None, which is nothing."""
        self.tasks.append(Task(where, seconds, tuple(one for one in after if one is not None)))
        return len(self.tasks) - 1

    def send(self, seconds: float, *after: int | None) -> int | None:
        """A message, with its latency; None where there is nothing to send."""
        return None if seconds == 0 else self.add(NETWORK, seconds + LATENCY, *after)

    def seconds(self) -> float:
        """When the last task is done."""
        done: dict[int, float] = {}
        free = {GPU: 0.0, NETWORK: 0.0}
        waiting = list(range(len(self.tasks)))
        while waiting:
            starts = {
                number: max((done[one] for one in self.tasks[number].after), default=0.0)
                for number in waiting[:WINDOW]
                if all(one in done for one in self.tasks[number].after)
            }
            # Of those that are ready the one that can begin first, then the one that has waited longest.
            number = min(
                starts, key=lambda one: (max(starts[one], free[self.tasks[one].where]), starts[one], one)
            )
            task = self.tasks[number]
            done[number] = free[task.where] = max(starts[number], free[task.where]) + task.seconds
            waiting.remove(number)
        return max(done.values(), default=0.0)


@dataclass(frozen=True)
class Layer:
    """Seconds of one layer in one micro-batch.

    Attributes:
        before: share of its products that stand before attention: those of q, k and v.
        products, attention: of its forward.
        back_products, back_attention: of its backward, with what is computed again for it.
        there, back: of the exchange before attention and behind it, once.
        again: exchanges that the recomputed forward needs too: 0 or 1.
        weights: of gathering its weights, once; 0 where they are whole.
        gradients: of sending its gradients.
    """

    before: float
    products: float
    attention: float
    back_products: float
    back_attention: float
    there: float
    back: float
    again: int
    weights: float
    gradients: float


@dataclass(frozen=True)
class Overlapped:
    """Of one optimizer step: seconds, those in which the GPU computes, and those without any overlap."""

    seconds: float
    compute: float
    apart: float

    @property
    def exposed(self) -> float:
        """The share of the step in which the GPU waits for the network."""
        return 1 - self.compute / self.seconds


def overlapped(model: Architecture, job: Job, strategy: Strategy, machine: Machine) -> Overlapped:
    """A step of a job without a reference and without a short context.

    Args:
        model, job, strategy, machine: as `step_time` takes them.
    """
    whole = step_time(model, job, strategy, machine)
    head, once = _head_seconds(model, job, strategy, machine), _at_the_end(model, job, strategy, machine)
    every = _micro_batch(layer_of(model, job, strategy, machine, last=False), model.layers, head)
    last = _micro_batch(layer_of(model, job, strategy, machine, last=True), model.layers, head)
    seconds = (job.accumulation - 1) * every + last + once + whole.host
    return Overlapped(seconds, whole.compute, whole.total)


@cache
def _micro_batch(layer: Layer, layers: int, head: float) -> float:
    """Seconds of a micro-batch of `layers` such layers."""
    line = Timeline()
    computed: int | None = None
    gathered = line.send(layer.weights)
    for _ in range(layers):
        coming = line.send(layer.weights, computed)  # the next layer's, while this one is computed
        start = line.add(GPU, layer.before * layer.products, computed, gathered)
        there = line.send(layer.there, start)
        attended = line.add(GPU, layer.attention, start, there)
        back = line.send(layer.back, attended)
        computed = line.add(GPU, (1 - layer.before) * layer.products, attended, back)
        gathered = coming
    computed = line.add(GPU, head, computed)
    for _ in range(layers):
        coming = line.send(layer.weights, computed)
        again = computed
        for _ in range(layer.again):
            there = line.send(layer.there, again)
            back = line.send(layer.back, there)
            again = back
        start = line.add(GPU, (1 - layer.before) * layer.back_products, computed, gathered, again)
        there = line.send(layer.back, start)  # the output's gradient takes the output's way
        attended = line.add(GPU, layer.back_attention, start, there)
        back = line.send(layer.there, attended)
        computed = line.add(GPU, layer.before * layer.back_products, attended, back)
        line.send(layer.gradients, computed)
        gathered = coming
    return line.seconds()


def layer_of(model: Architecture, job: Job, strategy: Strategy, machine: Machine, *, last: bool) -> Layer:
    """The seconds of a layer, by the totals of `step_time`.

    Args:
        model, job, strategy, machine: of the run.
        last: whether it is the step's last micro-batch, in which DDP and ZeRO-1 send gradients.
    """
    rows = job.rows.average()
    products, scores = machine.rates
    matrices, attention = (one / strategy.degree for one in work(model, job, strategy, rows))
    first, forward_attention = forward_work(model, rows, 0)
    first, forward_attention = first / strategy.degree, forward_attention / strategy.degree
    layers, slow = model.layers, attention_imbalance(model, strategy)
    head = _head_seconds(model, job, strategy, machine) * products
    inside, outside = exchange_bytes(model, job, strategy, machine, rows)
    passes = 2 if strategy.levers.checkpointing == "none" else 3
    exchange = (inside / machine.intra_bandwidth + outside / machine.inter_bandwidth) / layers / passes
    behind = model.query_width / (2 * model.query_width + 2 * model.kv_width) if strategy.gather == 1 else 0.0
    weights, gradients = _wrapper_seconds(model, job, strategy, machine, last=last)
    return Layer(
        before=model.projections / model.active,
        products=first / layers / products,
        attention=forward_attention * slow / layers / scores,
        back_products=(matrices - first - head) / layers / products,
        back_attention=(attention - forward_attention) * slow / layers / scores,
        there=exchange * (1 - behind),
        back=exchange * behind,
        again=passes - 2,
        weights=weights / layers,
        gradients=gradients / layers,
    )


def _head_seconds(model: Architecture, job: Job, strategy: Strategy, machine: Machine) -> float:
    """Forward and backward of the head, whose logits are made once more."""
    scored = job.rows.average().scored
    passes = 2 + (1.0 if model.lora else 2.0)
    return 2.0 * model.head_parameters * scored * passes / strategy.degree / machine.rates[0]


def _network(machine: Machine) -> float:
    return machine.intra_bandwidth if machine.nodes == 1 else machine.inter_bandwidth


def _wrapper_seconds(
    model: Architecture, job: Job, strategy: Strategy, machine: Machine, *, last: bool
) -> tuple[float, float]:
    """Seconds to gather all weights once, and to send all gradients, in this micro-batch."""
    wrapper, count = strategy.wrapper, machine.count
    if wrapper == "none" or count == 1:
        return 0.0, 0.0
    sent = (count - 1) / count / _network(machine)
    gradients = model.trainable * gradient_bytes(model, job.precision, wrapper)
    if wrapper in SHARDED:
        whole = states(model, job, "zero1" if wrapper != "fsdp2" else wrapper, 1).weights
        if wrapper == "fsdp2":
            low = job.precision.autocast and job.precision.weights != 2
            whole, gradients = model.parameters * job.precision.products, gradients / (2 if low else 1)
        return whole * sent, gradients * sent
    if wrapper == "zero2" or last:
        return 0.0, 2 * gradients * sent
    return 0.0, 0.0


def _at_the_end(model: Architecture, job: Job, strategy: Strategy, machine: Machine) -> float:
    """Seconds to gather the updated weights, which nothing hides."""
    if strategy.wrapper not in ("zero1", "zero2") or machine.count == 1:
        return 0.0
    updated = model.trainable * weight_bytes(model, job.precision, strategy.wrapper)
    return updated * (machine.count - 1) / machine.count / _network(machine) + LATENCY
