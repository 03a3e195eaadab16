"""What docs/planning.md quotes of `benchmarks/results/degrees_by_step.json`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docs.tables import read

WORTH = 0.1  # a gain that would have been built


def by_step() -> Iterator[str]:
    """Of a degree for each step, against one degree with rows shared out."""
    cells: list[dict[str, Any]] = read("degrees_by_step.json")["cells"]
    real = [cell for cell in cells if cell["stretch"] == 1]
    yield f"Rows as they are gain at most {_most(real)} by a degree a step"
    yield f"stretched ones on H100s at most {_most([cell for cell in cells if 'H100' in cell['cluster']])}"
    worth = [cell for cell in cells if cell["gain"] > WORTH]
    if {cell["cluster"] for cell in worth} != {"64 × A100 40 GB, 400 Gbit/s a machine"}:
        raise ValueError("docs/planning.md names the cluster on which a degree a step would be worth it")
    gains = [100 * cell["gain"] for cell in worth]
    lengths = [cell["longest"] for cell in worth]
    yield (
        f"rows of up to {min(lengths) // 1000}K to {max(lengths) // 1000}K tokens {min(gains):.1f} to "
        f"{max(gains):.1f} %"
    )
    best = max(real, key=lambda cell: cell["gain_in_any_order"])
    seconds = best["seconds"]
    buckets = seconds["one degree, shared out"] / seconds["one degree, buckets"] - 1
    yield f"a degree a step gains up to {100 * best['gain_in_any_order']:.1f} %"
    yield f"where `buckets` gains {100 * buckets:.1f} %"


def _most(cells: list[dict[str, Any]]) -> str:
    return f"{100 * max(cell['gain'] for cell in cells):.1f} %"
