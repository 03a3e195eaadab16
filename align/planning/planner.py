"""A plan: the given settings, the fastest that fit, and what rows without a shared prompt would take."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig
from rich.console import Console

from align.core.readable import Readable
from align.distributed.names import wrappers_on
from align.planning import tables
from align.planning.architecture import Architecture
from align.planning.asked import read_asked
from align.planning.cuts import Cut, cut_of
from align.planning.job import Job, Machine
from align.planning.plain import all_logits, fused_head
from align.planning.request import (
    describe,
    notes,
)
from align.planning.search import Priced, cheapest, price, smallest

ROWS = "ROWS.jsonl"  # in a command to paste, where nothing says which
# Keys of `align plan` alone, which `align train` does not have.
_OWN = ("rows", "gpus", "wrapper", "json", "goal")
# Hydra's words that say where configurations lie.
_HYDRA = ("--config-dir", "-cd")


@dataclass(frozen=True)
class Plan(Readable):
    """Everything that is printed: the given settings, the fastest that fit (None where none do), and what the given
    ones would need without a shared prompt: `fused` and `plain`, see `align.planning.plain`. `cut` is what training
    would cut of such rows.
    """

    sizes: Architecture
    source: str
    job: Job
    machine: Machine
    given: Priced
    best: Priced | None
    fused: Priced
    plain: Priced
    prompts: int
    cut: Cut | None = None


def make_plan(config: DictConfig) -> Plan:
    """The plan of a composed configuration; reads config.json, and a tokenizer where data.path is set.

    Raises:
        UserError: what `align train` would refuse too, and lengths or machines that make no sense.
    """
    asked = read_asked(config)
    sizes, job, machine, strategy = asked.sizes, asked.job, asked.machine, asked.strategy
    given = price(sizes, job, strategy, machine)
    prompts = given.time.prompts
    best = cheapest(sizes, job, machine, prompts=prompts, wrappers=wrappers_on(machine.device))
    fused = price(sizes, *fused_head(job, strategy), machine)
    plain = price(sizes, *all_logits(job, strategy), machine)
    return Plan(
        sizes,
        asked.source,
        job,
        machine,
        given,
        best,
        fused,
        plain,
        prompts,
        cut_of(config, asked.model, asked.architecture, job.rows),
    )


def own_overrides(arguments: list[str], *, rows: str | None) -> list[str]:
    """The user's overrides that `align train` takes too, without those that the plan sets.

    Args:
        arguments: as they were given; of Hydra's own words those that name a folder or file of configurations stay.
        rows: `data.path` where it was set in another way; None leaves its name to the user.
    """
    replaced = (*_OWN, "memory", "parallel", "trainer.gradient_accumulation_steps")
    kept = []
    for word, before in zip(arguments, ["", *arguments], strict=False):
        key = word.lstrip("+~").partition("=")[0].partition("@")[0]
        if word in _HYDRA or before in _HYDRA or key in _HYDRA:
            kept.append(word)
            continue
        override = not word.startswith("-") and ("=" in word or word.startswith("~"))
        if override and not any(key == name or key.startswith(f"{name}.") for name in replaced):
            kept.append(word)
    if not any(word.startswith("data.path=") for word in kept):
        kept.append(f"data.path={rows or ROWS}")
    return kept


def show(plan: Plan, own: list[str]) -> None:
    """The tables, then the command to paste or the sentence that nothing fits."""
    console = Console()
    tables.show([describe(plan.sizes, plan.job), f"sizes from {plan.source}"], console=console)
    tables.show(notes(plan.sizes), console=console)
    columns = {"given": plan.given}
    if plan.best is not None:
        columns["fastest that fits"] = plan.best
    columns |= {"padded rows, fused head": plan.fused, "padded rows, all logits": plan.plain}
    console.print(tables.memory_table(columns, plan.machine))
    tables.show(
        [
            "padded rows: the given settings with one row an answer, each with the whole prompt; logits of the answers "
            "alone and in parts, as in TRL 1.16, or of all positions at once, as in LongPO's released code"
        ],
        console=console,
    )
    if plan.cut is not None:
        tables.show([plan.cut.sentence], console=console)
    if plan.best is None:
        tables.show([nothing_fits(plan)], console=console)
    else:
        more = () if plan.cut is None else plan.cut.overrides
        tables.show(["", *tables.commands(plan.best, plan.machine, rest=[*own, *more])], console=console)


def nothing_fits(plan: Plan) -> str:
    """One sentence: what would be needed."""
    wrappers = wrappers_on(plan.machine.device)
    least = smallest(plan.sizes, plan.job, plan.machine, prompts=plan.prompts, wrappers=wrappers)
    need, have = tables.gigabytes(least.memory.total), tables.gigabytes(plan.machine.memory)
    host = ""
    if least.memory.host > 0:
        host = f" and {tables.gigabytes(least.memory.host)} of host memory a machine"
    levers = " ".join(tables.lever_overrides(least.strategy.levers))
    return (
        f"Nothing fits {plan.machine.count} × {have}: the least is {need} per GPU{host} "
        f"({least.strategy.wrapper}, degree {least.strategy.degree}, {levers}); "
        "take more or larger GPUs, or shorter rows."
    )


def to_json(plan: Plan) -> dict[str, object]:
    """The plan as JSON: bytes and seconds."""
    return {
        "model": plan.sizes.to_json(),
        "rows": vars(plan.job.rows),
        "machine": tables.machine_json(plan.machine),
        "given": tables.to_json(plan.given, plan.machine),
        "cheapest": tables.to_json(plan.best, plan.machine),
        "row_an_answer_fused_head": tables.to_json(plan.fused, plan.machine),
        "row_an_answer": tables.to_json(plan.plain, plan.machine),
    }
