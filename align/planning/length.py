"""The longest prompt whose step fits, for every set of memory levers, wrapper, exchange and degree (`goal=length`).

What a step needs grows with the prompt, so the longest is found by doubling and halving: it fits, and one of
`GRANULE` tokens more does not. An 8B with LoRA on one 80 GB GPU: 68,608 tokens with `checkpointing=keep_attention`
alone, and nearly ten times as many with the inputs of the layers on the host and layers in tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from align.distributed.names import WRAPPERS
from align.planning.architecture import Architecture
from align.planning.job import Job, Levers, Machine, Strategy
from align.planning.memory import Memory, predict
from align.planning.search import OFFLOAD_ROOM, Priced, fits, levers_pulled, price, strategies
from align.planning.tables import PARTS, gigabytes, to_json

GRANULE = 1024  # tokens: lengths are multiples of it
MOST = 2**30  # tokens at which the search ends, whatever fits


@dataclass(frozen=True)
class Longest:
    """The longest prompt of one way to run the job.

    Attributes:
        prompt: tokens, a multiple of `GRANULE`.
        priced: that way, with rows of that prompt.
        bound: what keeps a longer one from fitting, as a sentence without its stop.
    """

    prompt: int
    priced: Priced
    bound: str

    @property
    def levers(self) -> Levers:
        """Of memory."""
        return self.priced.strategy.levers

    def to_json(self, machine: Machine) -> dict[str, Any]:
        """The length, and the way as `align plan` writes any other."""
        return {"prompt": self.prompt, "bound": self.bound} | (to_json(self.priced, machine) or {})


def longest_prompts(
    model: Architecture, job: Job, machine: Machine, *, prompts: int, wrappers: Iterable[str] = WRAPPERS
) -> list[Longest]:
    """For each set of levers the wrapper, exchange and degree with the longest prompt, the longest first.

    Args:
        model: its sizes.
        job: its answers and short contexts count; the length of its prompts does not.
        machine: the devices.
        prompts: of a global step, which stay the same.
        wrappers: to choose from.

    Returns:
        Of equally long ones the fastest first; sets that hold no prompt of `GRANULE` tokens are left out.
    """
    best: dict[Levers, tuple[int, Job, Strategy]] = {}
    for strategy, its in _ways(model, job, machine, prompts=prompts, wrappers=wrappers):
        known = best.get(strategy.levers)
        least = 0 if known is None else known[0]
        # Most ways hold less than one that was found already, which a single prediction shows.
        if least and not _fits(model, its, strategy, machine, least):
            continue
        prompt = longest_prompt(model, its, strategy, machine, least=least)
        if prompt == 0:
            continue
        if known is None or prompt > least or _faster(model, (prompt, its, strategy), known, machine):
            best[strategy.levers] = (prompt, its, strategy)
    found = [
        longest(model, its, strategy, machine, prompt)
        for prompt, its, strategy in (_kept_here(model, machine, *way) for way in best.values())
    ]
    return sorted(found, key=lambda one: (-one.prompt, one.priced.time.per_prompt, levers_pulled(one.priced)))


def _kept_here(
    model: Architecture, machine: Machine, prompt: int, job: Job, strategy: Strategy
) -> tuple[int, Job, Strategy]:
    """The same with as many layers' inputs left on the device as make the prompt longest.

    Where the host or the disk is short and the device is not: of 32 layers' inputs 31 less `memory.prefetch` leave it.
    """
    if strategy.levers.offload == "none":
        return prompt, job, strategy
    for depth in range(strategy.levers.prefetch + 1, model.layers):
        deeper = replace(strategy, levers=replace(strategy.levers, prefetch=depth))
        if not _fits(model, job, deeper, machine, prompt + GRANULE):
            break
        prompt, strategy = longest_prompt(model, job, deeper, machine, least=prompt), deeper
    return prompt, job, strategy


def longest_prompt(
    model: Architecture, job: Job, strategy: Strategy, machine: Machine, *, least: int = 0
) -> int:
    """Tokens of the longest prompt that fits, a multiple of `GRANULE`; 0 where not even one of them does.

    Args:
        model, job, strategy, machine: of the run.
        least: a multiple that is known to fit.
    """
    low, high = least // GRANULE, max(1, 2 * least // GRANULE)
    while high * GRANULE <= MOST and _fits(model, job, strategy, machine, high * GRANULE):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(model, job, strategy, machine, middle * GRANULE):
            low = middle
        else:
            high = middle
    return low * GRANULE


def longest(model: Architecture, job: Job, strategy: Strategy, machine: Machine, prompt: int) -> Longest:
    """The way at its longest prompt, priced, and what keeps a longer one from fitting."""
    priced = price(model, with_prompt(job, prompt), strategy, machine)
    return Longest(prompt, priced, bound(model, job, strategy, machine, prompt))


def with_prompt(job: Job, prompt: int) -> Job:
    """The job with prompts of so many tokens, all of them."""
    return replace(job, rows=replace(job.rows, prompt=prompt, mean_prompt=None))


def bound(model: Architecture, job: Job, strategy: Strategy, machine: Machine, prompt: int) -> str:
    """What keeps `GRANULE` tokens more from fitting: host memory, disk, or the part of the GPU's that grows most."""
    now, more = (
        predict(model, with_prompt(job, length), strategy, machine) for length in (prompt, prompt + GRANULE)
    )
    if more.host > OFFLOAD_ROOM * machine.host_memory:
        return f"host memory: {gigabytes(now.host)} a machine, {_a_token(more.host - now.host)}"
    if more.disk > OFFLOAD_ROOM * machine.disk_memory:
        return f"disk: {gigabytes(now.disk)} a machine, {_a_token(more.disk - now.disk)}"
    part, grown = max(_growth(now, more), key=lambda pair: pair[1])
    return f"{part} in the phase {more.phase}: {gigabytes(getattr(more, part))}, {_a_token(grown)}"


def _a_token(grown: float) -> str:
    return f"{grown / GRANULE / 1e3:.0f} kB a token"


def _growth(now: Memory, more: Memory) -> Iterator[tuple[str, float]]:
    for part in PARTS:
        yield part, getattr(more, part) - getattr(now, part)


def _fits(model: Architecture, job: Job, strategy: Strategy, machine: Machine, prompt: int) -> bool:
    return fits(predict(model, with_prompt(job, prompt), strategy, machine), machine)


def _faster(
    model: Architecture,
    one: tuple[int, Job, Strategy],
    other: tuple[int, Job, Strategy],
    machine: Machine,
) -> bool:
    first, second = (
        price(model, with_prompt(job, prompt), strategy, machine) for prompt, job, strategy in (one, other)
    )
    return (first.time.per_prompt, levers_pulled(first)) < (second.time.per_prompt, levers_pulled(second))


def _ways(
    model: Architecture, job: Job, machine: Machine, *, prompts: int, wrappers: Iterable[str]
) -> Iterator[tuple[Strategy, Job]]:
    """Those of search.py, with both exchanges at every degree: which is the faster depends on the length."""
    for strategy, its in strategies(model, job, machine, prompts=prompts, wrappers=wrappers):
        if strategy.degree == 1:
            yield strategy, its
            continue
        for exchange in ("ulysses", "gather"):
            yield replace(strategy, exchange=exchange), its
