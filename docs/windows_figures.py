"""What docs/windows.md says of measured costs, from benchmarks/results; see figures.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from docs.tables import RESULTS


def windows() -> Iterator[str]:
    """What patterns cost with SmolLM2's heads."""
    cells: list[dict[str, Any]] = json.loads((RESULTS / "windows.json").read_text())["heads"]["SmolLM2-135M"]
    ratio = {cell["pattern"]: cell["ratio"] for cell in cells}
    assert {cell["kept_ratio"] for cell in cells} == {1.0}
    sinks = ratio["attention=sink_window attention.window=512"]
    groups = ratio["attention=s2 attention.group=2048"]
    both = ratio["attention=s2 attention.group=2048 attention.sinks=4"]
    yield (
        f"windows of 512 with 4 first tokens {sinks:.2f}, groups of 2,048 {groups:.2f}, these with 4 first tokens "
        f"{both:.2f}"
    )
    hybrid = ratio["attention=hybrid attention.others.size=512"]
    blocks = ratio["attention=hybrid_blocks"]
    yield (
        f"windows of 512 in two thirds of its layers takes {hybrid:.2f} of the time, with blocks of 256, every 16th of "
        f"which all see, {blocks:.2f}"
    )
    yield from memory_of_a_row()


def memory_of_a_row() -> Iterator[str]:
    """What a row keeps by the memory levers, and LeMo at least; the same loss by all that are built."""
    found = json.loads((RESULTS / "lemo.json").read_text())
    ways, least = found["ways"], found["lemo_at_least"]
    losses = [way["loss"] for way in ways.values()]
    assert max(losses) - min(losses) < 1e-5

    def kept(levers: str) -> str:
        return f"{ways[levers]['kept'] / 1e6:,.0f} MB"

    full = "memory.checkpointing=full"
    tiled = kept(f"{full} memory.mlp_chunk=512 memory.offload=disk")
    yield (
        f"a row of {found['tokens']:,} tokens keeps {kept('plain')} in transformers' own forward, at least "
        f"{least['0.5'] / 1e6:.0f} MB with LeMo where its later layers keep half of the tokens and "
        f"{least['0.2'] / 1e6:.0f} MB where they keep a fifth"
    )
    yield (
        f"{kept('memory.checkpointing=keep_attention')} with `memory.checkpointing=keep_attention`, {kept(full)} with "
        f"`full`, and {tiled} with `mlp_chunk=512` and `offload=disk`"
    )
