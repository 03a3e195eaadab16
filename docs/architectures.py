"""Tables of docs/architectures.md, made from `benchmarks/results/architectures.json`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results" / "architectures.json"
PAGE = "docs/architectures.md"


def classes() -> Mapping[str, Any]:
    """A row of results for each type of configuration."""
    found: Mapping[str, Any] = json.loads(RESULTS.read_text())["classes"]
    return found


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def chosen(verdict: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The classes with a verdict, by name."""
    return sorted((name, row) for name, row in classes().items() if row["verdict"] == verdict)


def kind(row: Mapping[str, Any]) -> str:
    """What sort of class it is: for the table of counts."""
    if "images" in row.get("marks", ()):
        return "text part of a composite"
    return "decoder" if row.get("decoder", True) else "decoder of an encoder's family"


def counts() -> str:
    """How many classes have each verdict."""
    verdicts = ("shared", "by a mask", "own rows", "refused", "unproven", "traceback", "not built")
    found = Counter((kind(row), row["verdict"]) for row in classes().values())
    kinds = ("decoder", "text part of a composite", "decoder of an encoder's family")
    rows = [[each, *(str(found[each, verdict]) for verdict in verdicts)] for each in kinds]
    total = Counter(row["verdict"] for row in classes().values())
    rows.append(["all", *(str(total[verdict]) for verdict in verdicts)])
    return table(["class", *verdicts], rows)


def made_of(row: Mapping[str, Any]) -> str:
    """Its marks in one cell."""
    return ", ".join(row.get("marks", ()))


def power(value: float) -> str:
    """An error as a power of ten that it does not exceed: `1e-14`; 0 as it is."""
    if value == 0:
        return "0"
    exponent = f"{value:.0e}".split("e")[1]
    return f"1e{int(exponent) + 1}"


def parallel(row: Mapping[str, Any]) -> str:
    """Whether two processes may share its rows."""
    return "yes" if row["parallel"]["exact"] else "no"


def shared() -> str:
    """The classes that share a prompt, exactly."""
    rows = [
        [f"`{name}`", made_of(row), power(row["loss"]), power(row["gradient"]), parallel(row)]
        for name, row in chosen("shared")
    ]
    return table(["type", "has", "loss, at most", "gradients, at most", "sequence parallelism"], rows)


def sentence(row: Mapping[str, Any]) -> str:
    """Why it reads as it does, in one cell, without what to set: what the way before it says, or the last one."""
    return (
        str((row["verdict"] == "own rows" and row.get("by a mask")) or row.get("own rows") or row["sentence"])
        .split(": set model.attention=library")[0]
        .replace("|", "\\|")
    )


def of_library(verdict: str, why: str) -> str:
    """The classes that the library's attention reads exactly in one of its ways."""
    rows = [
        [f"`{name}`", made_of(row), power(row["loss"]), power(row["gradient"]), sentence(row)]
        for name, row in chosen(verdict)
    ]
    return table(["type", "has", "loss, at most", "gradients, at most", why], rows)


def refused() -> str:
    """The classes that do not train, and those of which no model could be made here."""
    rows = [
        [f"`{name}`", verdict, sentence(row)]
        for verdict in ("refused", "unproven", "traceback", "not built")
        for name, row in chosen(verdict)
    ]
    return table(["type", "verdict", "why"], rows)


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    (PAGE, "counts"): counts,
    (PAGE, "shared"): shared,
    (PAGE, "by a mask"): partial(of_library, "by a mask", "why not by the shared-prefix attention"),
    (PAGE, "own rows"): partial(of_library, "own rows", "why not by a mask"),
    (PAGE, "refused"): refused,
}
