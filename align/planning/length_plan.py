"""`align plan goal=length`: the longest prompt that fits, by sets of memory levers, and the settings that hold it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from align.core.readable import Readable
from align.distributed.names import wrappers_on
from align.longseq.settings import DEFAULT_PREFETCH
from align.planning import tables
from align.planning.architecture import Architecture
from align.planning.asked import read_asked
from align.planning.cuts import Cut, cut_of
from align.planning.job import Job, Levers, Machine
from align.planning.length import GRANULE, Longest, longest, longest_prompt, longest_prompts, with_prompt
from align.planning.request import describe, notes
from align.planning.search import HEADROOM
from align.planning.time import step_time

SHOWN = 8  # sets of levers in the table


@dataclass(frozen=True)
class LengthPlan(Readable):
    """Everything that is printed.

    Attributes:
        sizes, source, job, machine: of the run; the length of the job's prompts is `least`.
        given: the longest prompt of the given settings; None where they hold none.
        ways: the longest of each set of levers, the longest first.
        least: tokens of the longest prompt of the data, or of `rows.prompt`; 0 where nothing says.
        cut: what training would cut of such rows.
    """

    sizes: Architecture
    source: str
    job: Job
    machine: Machine
    given: Longest | None
    ways: list[Longest]
    least: int
    cut: Cut | None = None

    @property
    def best(self) -> Longest | None:
        """The longest; None where nothing fits, or not the rows that there are."""
        return self.ways[0] if self.ways and self.ways[0].prompt >= self.least else None


def make_length_plan(config: DictConfig) -> LengthPlan:
    """The plan of a composed configuration; reads config.json, and a tokenizer where data.path is set.

    Raises:
        UserError: what `align train` would refuse too, and lengths or machines that make no sense.
    """
    asked = read_asked(config, otherwise=GRANULE)
    sizes, job, machine, strategy = asked.sizes, asked.job, asked.machine, asked.strategy
    said = (
        config.data.path is not None or config.rows.prompt is not None or config.data.max_length is not None
    )
    prompts = step_time(sizes, job, strategy, machine).prompts
    prompt = longest_prompt(sizes, job, strategy, machine)
    given = longest(sizes, job, strategy, machine, prompt) if prompt else None
    ways = longest_prompts(sizes, job, machine, prompts=prompts, wrappers=wrappers_on(machine.device))
    cut = None
    if ways:
        rows = with_prompt(job, ways[0].prompt).rows
        cut = cut_of(config, asked.model, asked.architecture, rows)
    least = job.rows.prompt if said else 0
    return LengthPlan(sizes, asked.source, job, machine, given, ways, least, cut)


def show(plan: LengthPlan, own: list[str]) -> None:
    """The table, what bounds the longest, and the command to paste or the sentence that nothing fits.

    Args:
        plan: what to show.
        own: the user's overrides, which the command repeats.
    """
    console = Console()
    job = with_prompt(plan.job, plan.ways[0].prompt) if plan.ways else plan.job
    tables.show([describe(plan.sizes, job), f"sizes from {plan.source}"], console=console)
    tables.show(notes(plan.sizes), console=console)
    if plan.ways:
        console.print(table(plan))
        tables.show(list(sentences(plan)), console=console)
    if plan.best is None:
        tables.show([nothing_fits(plan)], console=console)
        return
    more = () if plan.cut is None else plan.cut.overrides
    command = tables.commands(plan.best.priced, plan.machine, rest=[*own, *more])
    tables.show(["", *command], console=console)


def table(plan: LengthPlan) -> Table:
    """The given settings, then of each kind of levers the longest, the longest first."""
    unit = "GPU" if plan.machine.device == "cuda" else "process"
    title = (
        f"the longest prompt that fits {HEADROOM:.0%} of {tables.gigabytes(plan.machine.memory)} per {unit}"
    )
    several = plan.machine.count > 1
    made = Table(title=title, title_justify="left")
    made.add_column("levers")
    headings = ("tokens", *(("wrapper", "degree") if several else ()), "GB", "offloaded GB", "s a step")
    for heading in headings:
        made.add_column(heading, justify="right")
    rows = [("given: ", plan.given)] if plan.given is not None else []
    for name, one in [*rows, *(("", one) for one in shown(plan.ways))]:
        made.add_row(f"{name}{_levers(one.levers)}", *_cells(one, several=several))
    return made


def shown(ways: list[Longest]) -> list[Longest]:
    """The longest of each kind, where sizes of chunks make no kind: at most `SHOWN`."""
    kinds: dict[tuple[str, str, bool], Longest] = {}
    for one in ways:
        kinds.setdefault((one.levers.checkpointing, one.levers.offload, one.levers.mlp_chunk is None), one)
    return list(kinds.values())[:SHOWN]


def _levers(levers: Levers) -> str:
    """`full, mlp 8192, host` of the group `memory`, without what is off; `host but 5` where 5 layers' inputs stay."""
    said = [levers.checkpointing]
    said += [] if levers.mlp_chunk is None else [f"mlp {levers.mlp_chunk}"]
    stay = f" but {levers.prefetch}" if levers.prefetch > DEFAULT_PREFETCH else ""
    return ", ".join(said + ([] if levers.offload == "none" else [f"{levers.offload}{stay}"]))


def _cells(one: Longest, *, several: bool) -> list[str]:
    strategy, memory = one.priced.strategy, one.priced.memory
    offloaded = memory.host + memory.disk
    return [
        f"{one.prompt:,}",
        *((strategy.wrapper, tables.degree(strategy)) if several else ()),
        f"{memory.total / 1e9:.1f}",
        f"{offloaded / 1e9:.1f}" if offloaded else "",
        f"{one.priced.time.total:,.0f}" if one.priced.time.total >= 100 else f"{one.priced.time.total:.3g}",
    ]


def sentences(plan: LengthPlan) -> Iterator[str]:
    """What bounds the longest, what it leaves open, and how the rows that there are stand to it."""
    first = plan.ways[0]
    yield f"longest: {first.prompt} tokens, bounded by {first.bound}; {GRANULE} tokens more do not fit"
    if first.priced.memory.disk and math.isinf(plan.machine.disk_memory):
        yield f"the disk needs {tables.gigabytes(first.priced.memory.disk)} a machine; gpus.disk_gb says what is free"
    if plan.least and plan.best is not None:
        yield f"the longest prompt that was asked for has {plan.least} tokens: here it is a least length, and fits"
    if plan.cut is not None:
        yield plan.cut.sentence


def nothing_fits(plan: LengthPlan) -> str:
    """One sentence: what is too long."""
    have = f"{plan.machine.count} × {tables.gigabytes(plan.machine.memory)}"
    if not plan.ways:
        return f"Nothing fits {have}, not even a prompt of {GRANULE} tokens: take more or larger GPUs."
    return (
        f"Nothing holds prompts of {plan.least} tokens on {have}: the longest that fits has {plan.ways[0].prompt}; "
        "take more or larger GPUs, or shorter rows."
    )


def to_json(plan: LengthPlan) -> dict[str, object]:
    """The plan as JSON: tokens, bytes and seconds."""
    return {
        "model": plan.sizes.to_json(),
        "rows": vars(plan.job.rows),
        "machine": tables.machine_json(plan.machine),
        "at_least": plan.least,
        "given": None if plan.given is None else plan.given.to_json(plan.machine),
        "longest": None if plan.best is None else plan.best.to_json(plan.machine),
        "ways": [one.to_json(plan.machine) for one in plan.ways],
    }
