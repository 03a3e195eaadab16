"""The fastest settings that fit: every wrapper, degree and lever is priced, and the fastest that fits is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from align.distributed.names import WRAPPERS
from align.longseq.parallel import choose_exchange
from align.planning.architecture import Architecture
from align.planning.job import Job, Levers, Machine, Rows, Strategy
from align.planning.memory import Memory, predict
from align.planning.time import Time, step_time

HEADROOM = (
    0.95  # of the memory that a plan may fill: the prediction is good to some per cent, not to the byte
)
OFFLOAD_ROOM = 0.8  # of the host's memory or of its disk that offloading may fill
MLP_CHUNKS = (None, 8192, 2048, 512)
LOGITS_CHUNKS = (1024, 256)


@dataclass(frozen=True)
class Priced:
    """A way to run the job: what it needs and how long a step takes."""

    strategy: Strategy
    job: Job
    memory: Memory
    time: Time

    def fits(self, machine: Machine) -> bool:
        """Whether GPU, host and disk have room."""
        return fits(self.memory, machine)


def fits(memory: Memory, machine: Machine) -> bool:
    """Whether GPU, host and disk have room for it."""
    room = memory.total <= HEADROOM * machine.memory and memory.host <= OFFLOAD_ROOM * machine.host_memory
    return room and memory.disk <= OFFLOAD_ROOM * machine.disk_memory


def price(model: Architecture, job: Job, strategy: Strategy, machine: Machine) -> Priced:
    """Memory and time of one strategy."""
    return Priced(
        strategy,
        job,
        predict(model, job, strategy, machine),
        step_time(model, job, strategy, machine),
    )


def lever_sets(device: str, rows: Rows | None = None, *, prefetch: int = 1) -> Iterator[Levers]:
    """Every combination of the group `memory`, fewest levers first.

    Args:
        device: a CPU has no host to offload to.
        rows: what is read; rows of their own are not tiled. None is rows that share their prompts.
        prefetch: as the key, which is no choice of a plan.
    """
    offloads = ("none", "host", "disk") if device == "cuda" else ("none", "disk")
    chunks = MLP_CHUNKS if rows is None or rows.shared else (None,)
    for logits, offload, mlp in product(LOGITS_CHUNKS, offloads, chunks):
        for mode in ("none", "keep_attention", "full"):
            if mode == "none" and (mlp is not None or offload != "none"):
                continue
            yield Levers(mode, logits, offload, mlp, prefetch)


def strategies(
    model: Architecture, job: Job, machine: Machine, *, prompts: int, wrappers: Iterable[str] = WRAPPERS
) -> Iterator[tuple[Strategy, Job]]:
    """Wrapper × degree × levers, with the accumulation that keeps the prompts of a step."""
    for wrapper, degree in product(wrappers, _divisors(machine.count)):
        if wrapper not in model.wrappers or (degree > 1 and model.one_process):
            continue
        if not _runs(wrapper, degree, job, machine, prompts):
            continue
        exchange = "none"
        if degree > 1:
            exchange, _ = choose_exchange(
                heads=model.heads, kv_heads=model.kv_heads, degree=degree, length=job.rows.tokens
            )
        accumulation = -(-prompts // (machine.count // degree * job.rows.prompts))
        for levers in lever_sets(machine.device, job.rows):
            yield Strategy(wrapper, exchange, degree, levers), replace(job, accumulation=accumulation)


def _runs(wrapper: str, degree: int, job: Job, machine: Machine, prompts: int) -> bool:
    """One process has no wrapper, what cannot be sharded is not, and a step has no more prompts than asked."""
    if (wrapper == "none") != (machine.count == 1):
        return False
    if degree > 1 and not job.rows.shared:
        return False
    if job.precision.quantised and wrapper not in ("none", "ddp"):
        return False
    return machine.count // degree * job.rows.prompts <= prompts or degree == machine.count


def cheapest(
    model: Architecture,
    job: Job,
    machine: Machine,
    *,
    prompts: int,
    wrappers: Iterable[str] = WRAPPERS,
) -> Priced | None:
    """The fastest step that fits, of several the one with the fewest levers; None where nothing fits.

    Args:
        model: its sizes.
        job: with the micro-batch's rows.
        machine: the devices.
        prompts: of a global step, which stay the same: groups that a degree takes become accumulation.
        wrappers: to choose from.
    """
    priced = [
        price(model, its, strategy, machine)
        for strategy, its in strategies(model, job, machine, prompts=prompts, wrappers=wrappers)
    ]
    fitting = [one for one in priced if one.fits(machine)]
    # Speeds within a hundredth count as equal; then what asks for less is simpler.
    best = min((one.time.per_prompt for one in fitting), default=0.0)
    close = [one for one in fitting if one.time.per_prompt <= 1.01 * best]
    return min(close, key=levers_pulled, default=None)


def smallest(
    model: Architecture, job: Job, machine: Machine, *, prompts: int, wrappers: Iterable[str] = WRAPPERS
) -> Priced:
    """What needs the least GPU memory of all, for the sentence that nothing fits."""
    priced = [
        price(model, its, strategy, machine)
        for strategy, its in strategies(model, job, machine, prompts=prompts, wrappers=wrappers)
    ]
    return min(priced, key=lambda one: (one.memory.total, one.time.total))


def cheapest_levers(model: Architecture, job: Job, strategy: Strategy, machine: Machine) -> Priced | None:
    """`memory=auto`: wrapper and degree are given, the levers chosen; None where no set fits."""
    priced = [
        price(model, job, replace(strategy, levers=levers), machine)
        for levers in lever_sets(machine.device, job.rows, prefetch=strategy.levers.prefetch)
    ]
    fitting = [one for one in priced if one.fits(machine)]
    best = min((one.time.total for one in fitting), default=0.0)
    return min((one for one in fitting if one.time.total <= 1.01 * best), key=levers_pulled, default=None)


def levers_pulled(priced: Priced) -> tuple[int, float]:
    """How many settings differ from the defaults, then the memory: less is simpler.

    With `memory.mlp_chunk` set and a degree of 4, and 60 GB in all: (2, 60e9).
    """
    strategy, levers = priced.strategy, priced.strategy.levers
    pulled = [
        levers.mlp_chunk is not None,
        levers.offload != "none",
        levers.logits_chunk != LOGITS_CHUNKS[0],
        strategy.degree > 1,
        strategy.wrapper == "zero3_offload",
    ]
    return sum(pulled), priced.memory.total


def _divisors(count: int) -> list[int]:
    """Of 6: 1, 2, 3 and 6."""
    return [n for n in range(1, count + 1) if count % n == 0]
