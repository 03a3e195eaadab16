"""The gradient table's report: what counts as an error, what stays in the table, and the documentation's block."""

from __future__ import annotations

import json
import math

import pytest

from benchmarks import parity
from benchmarks.parity_report import BEGIN, END, PAGE, draw, exceeds, grid, markdown, worst, write_page

GOOD = {"loss": 1e-7, "gradient": 9e-7, "weights": 2e-7, "update": 1e-4}
RESULTS = {
    "cells": {
        "gather/2/ddp/full": GOOD,
        "ulysses/2/ddp/full": GOOD | {"gradient": 3e-6},
        "ulysses/2x2/zero3/LoRA": {"error": "ValueError: not on this machine"},
    }
}


def test_a_refusal_is_listed_and_not_counted_as_an_error():
    assert not exceeds(GOOD, parity.TOLERANCES)
    assert exceeds(GOOD | {"gradient": 2e-5}, parity.TOLERANCES)
    assert exceeds(GOOD | {"loss": math.nan}, parity.TOLERANCES)
    assert not exceeds({"error": "no"}, parity.TOLERANCES)
    assert math.isnan(worst({"error": "no"}))
    assert worst(GOOD) == 9e-7


def test_the_grid_has_a_place_for_every_combination(tmp_path):
    headings, lines = grid(RESULTS)
    assert headings == ["wrapper", "trains", "ulysses 2", "ulysses 2 × 2", "gather 2"]
    assert lines == [["DDP", "full", "3e-6", "", "9e-7"], ["ZeRO-3", "LoRA", "", "fails", ""]]
    text = markdown(RESULTS)
    assert text.startswith("2 of 3 combinations")
    assert "`ulysses/2x2/zero3/LoRA: ValueError: not on this machine`" in text
    draw(RESULTS, tmp_path / "parity.png")
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_the_committed_results(tmp_path):
    """The block is what the results give, and writing it touches nothing else."""
    results = json.loads((parity.RESULTS / "parity.json").read_text())
    assert len(results["cells"]) == 2 * 4 * 6 * 2
    assert not [name for name, cell in results["cells"].items() if exceeds(cell, parity.TOLERANCES)]
    copied = tmp_path / "scaling.md"
    copied.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(results, copied)
    assert copied.read_text() == f"before\n{BEGIN}\n{markdown(results)}{END}\nafter\n"
    assert markdown(results) in PAGE.read_text()


def explode(*args, **kwargs):
    raise RuntimeError("first line\nthe library cannot do this")


def test_a_failing_launch_loses_only_the_cell_at_fault(monkeypatch):
    """`run` tries wrappers, then cells, by themselves; the one that fails keeps the last line of its message."""

    def launch(worker, size, wrappers, cases, degree, kinds, *, timeout):
        if "zero3" in wrappers and "LoRA" in cases:
            explode()
        return [{(w, c, k): GOOD for w in wrappers for c in cases for k in kinds}] * size

    monkeypatch.setattr(parity, "run_distributed", launch)
    cells = parity.run(parity.Launch("2", ["ddp", "zero3"], ["gather"], ["full", "LoRA"]))
    assert cells.pop("gather/2/zero3/LoRA") == {"error": "RuntimeError: the library cannot do this"}
    assert set(cells) == {"gather/2/ddp/full", "gather/2/ddp/LoRA", "gather/2/zero3/full"}


@pytest.mark.parametrize("words", [["--layouts", "5"], ["--wrappers", "horovod"]])
def test_unknown_cells_are_refused(words):
    with pytest.raises(SystemExit):
        parity.parse(words)
