"""A plan as tables, as JSON and as overrides to paste."""

from __future__ import annotations

import math
import shlex
from typing import Any

from rich.console import Console
from rich.table import Table

from align.distributed.names import launch_file
from align.planning.job import GB, Levers, Machine, Strategy
from align.planning.search import Priced

PARTS = ("weights", "gradients", "optimizer", "reference", "checkpoints", "transient", "buffers", "runtime")


def gigabytes(value: float) -> str:
    """Bytes in GB of 1e9: `12.3 GB`, and below one `0.45 GB`."""
    return f"{value / GB:.1f} GB" if value >= 0.95e9 else f"{value / GB:.2f} GB"


def lever_overrides(levers: Levers) -> list[str]:
    """The group `memory` as overrides, all that is read, so that they hold whatever was set before."""
    early = [] if levers.offload == "none" else [f"memory.prefetch={levers.prefetch}"]
    chunk = "null" if levers.mlp_chunk is None else str(levers.mlp_chunk)
    return [
        f"memory.checkpointing={levers.checkpointing}",
        f"memory.mlp_chunk={chunk}",
        f"memory.offload={levers.offload}",
        *early,
        f"memory.logits_chunk={levers.logits_chunk}",
    ]


def overrides(priced: Priced, *, given: Strategy | None = None, accumulation: int | None = None) -> list[str]:
    """What to paste behind `align train …`; what `given` and `accumulation` have already is left out."""
    strategy = priced.strategy
    words = []
    if given is None or strategy.degree != given.degree or strategy.exchange != given.exchange:
        words.append(f"parallel={strategy.exchange}")
        if strategy.degree > 1:
            words.append(f"parallel.degree={strategy.degree}")
    if accumulation != priced.job.accumulation:
        words.append(f"trainer.gradient_accumulation_steps={priced.job.accumulation}")
    return [*words, *lever_overrides(strategy.levers)]


def commands(priced: Priced, machine: Machine, *, rest: list[str]) -> list[str]:
    """The lines to paste: one command, or for several machines one for each of them and Slurm's in their place.

    Args:
        priced: what to run.
        machine: how many processes, on how many machines.
        rest: the user's own overrides, as they were given; they are quoted for the shell here.
    """
    name = launch_file(priced.strategy.wrapper, machine.device)
    device = ["trainer.use_cpu=true"] if machine.device == "cpu" else []
    words = shlex.join([*rest, *overrides(priced), *device])
    if machine.nodes == 1:
        launch = f"accelerate launch --config_file launchers/accelerate/{name}.yaml"
        processes = f" --num_processes {machine.count}" if machine.count > 1 else ""
        return [f"{launch}{processes} -m align.train {words}"]
    each, last = machine.per_node, machine.nodes - 1
    hand = f"MACHINES={machine.nodes} MACHINE_RANK=RANK MAIN_ADDRESS=ADDRESS GPUS_PER_MACHINE={each}"
    lines = [
        f"# on each machine, with its number from 0 to {last} for RANK and the address of number 0 for ADDRESS:",
        f"{hand} launchers/multi_node.sh {name} {words}",
    ]
    if machine.device == "cuda":
        slurm = f"sbatch --nodes={machine.nodes} --gpus-per-node={each} launchers/slurm.sbatch {name} {words}"
        lines += ["# or, under Slurm:", slurm]
    return lines


def memory_table(columns: dict[str, Priced], machine: Machine) -> Table:
    """Memory per GPU by what it is for, and seconds a step; one column a setting."""
    unit = "GPU" if machine.device == "cuda" else "process"
    table = Table(title=f"GB per {unit}, of {gigabytes(machine.memory)}", title_justify="left")
    table.add_column("")
    for heading in columns:
        table.add_column(heading, justify="right")
    for part in PARTS:
        table.add_row(part, *(f"{getattr(one.memory, part) / GB:.2f}" for one in columns.values()))
    table.add_section()
    table.add_row("peak", *(f"{one.memory.total / GB:.2f}" for one in columns.values()))
    table.add_row("in the phase", *(one.memory.phase for one in columns.values()))
    table.add_row(
        "fits", *("[green]yes" if one.fits(machine) else "[bold red]NO" for one in columns.values())
    )
    for label, name in (("on the host", "host"), ("on disk", "disk")):
        if any(getattr(one.memory, name) for one in columns.values()):
            table.add_row(label, *(f"{getattr(one.memory, name) / GB:.1f}" for one in columns.values()))
    table.add_section()
    table.add_row("wrapper", *(one.strategy.wrapper for one in columns.values()))
    table.add_row("degree", *(degree(one.strategy) for one in columns.values()))
    table.add_row("seconds a step", *(f"{one.time.total:.3g}" for one in columns.values()))
    for part in ("compute", "exchange", "wrapper", "host"):
        table.add_row(f"  {part}", *(f"{getattr(one.time, part):.3g}" for one in columns.values()))
    table.add_row("prompts a step", *(str(one.time.prompts) for one in columns.values()))
    return table


def degree(strategy: Strategy) -> str:
    """`ulysses × 8`; 1 where rows are not shared."""
    return f"{strategy.exchange} × {strategy.degree}" if strategy.degree > 1 else "1"


def to_json(priced: Priced | None, machine: Machine) -> dict[str, Any] | None:
    """One setting as JSON: strategy, memory in bytes by what it is for, seconds."""
    if priced is None:
        return None
    strategy = priced.strategy
    return {
        "wrapper": strategy.wrapper,
        "exchange": strategy.exchange,
        "degree": strategy.degree,
        "memory_levers": vars(strategy.levers),
        "accumulation": priced.job.accumulation,
        "fits": priced.fits(machine),
        "memory_bytes": priced.memory.to_json(),
        "seconds": priced.time.to_json(),
        "overrides": overrides(priced),
    }


def machine_json(machine: Machine) -> dict[str, Any]:
    """Its numbers; null for a disk without an end, which JSON has no number for."""
    return {key: None if value == math.inf else value for key, value in vars(machine).items()}


def show(lines: list[str], *, console: Console | None = None) -> None:
    """Prints lines whole, so that commands can be pasted."""
    for line in lines:
        (console or Console()).print(line, soft_wrap=True, highlight=False, markup=False)
