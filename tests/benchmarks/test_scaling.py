"""benchmarks/scaling.py: a cell is found again by everything that its numbers depend on. Nothing is measured here."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from benchmarks.report import machine
from docs.tables import forward_ways, scaling_cell

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scaling(monkeypatch):
    """The script, which imports its neighbours as scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scaling")


def names(scaling, *words: str) -> list[str]:
    return [scaling.name_of(cell) for cell in scaling.cells(scaling.parse(list(words)))]


def test_another_model_or_other_threads_are_other_cells(scaling):
    """Else the old numbers would be shown as the new ones'."""
    words = ("--levers", "full", "--prompts", "1024")
    (known,) = names(scaling, *words)
    (model,) = names(scaling, *words, "--model", "Qwen/Qwen3-8B")
    (threads,) = names(scaling, *words, "--threads", "2")
    assert len({known, model, threads}) == 3
    assert model == "Qwen--Qwen3-8B/1 thread/lora 1+2×128/all/full 1024/none/1/1024"


def test_the_committed_cells_have_their_names(scaling):
    cells = json.loads((BENCHMARKS / "results" / "scaling.json").read_text())["cells"]
    for name, found in cells.items():
        assert scaling.name_of(found["cell"]) == name
        assert found["cell"]["threads"] == found["machine"]["threads"]
    alone = scaling.alone({"cells": cells}, scaling_cell("keep_attention", 8192, "gather", 2)["cell"])
    assert alone == scaling_cell("keep_attention", 8192)


def test_the_way_of_measuring_stands_with_the_figures():
    """As the rounds themselves say; and a machine is named by its processor, threads and cores."""
    cells = json.loads((BENCHMARKS / "results" / "forward.json").read_text())["cells"]
    for cell in cells.values():
        for measured in cell["contestants"].values():
            flags = [step["warmup"] for step in measured["rounds"]]
            assert (sum(flags), len(flags) - sum(flags)) == (cell["warmup"], cell["rounds"])
    new = {"machine": {"processor": "X", "threads": 2}, "warmup": 1, "rounds": 3}
    assert forward_ways({"full/dpo/512/equal": new, "full/dpo/2048/equal": new}) == (
        "All: X, 2 threads, 3 counted rounds, median, 1 to warm up.\n"
    )
    assert {"processor", "threads", "cores", "torch"} < set(machine(2))
