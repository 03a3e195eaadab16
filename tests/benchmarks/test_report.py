"""The table and the picture of a training step: also of cells that were measured at different times."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def report(monkeypatch) -> ModuleType:
    """Scripts of benchmarks/ import each other by their names alone."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("report", None)
    return importlib.import_module("report")


def measured(seconds: float) -> dict:
    step = {"seconds": seconds, "processor_seconds": seconds, "loss": 1.0, "gradient_norm": 2.0}
    rounds = [{**step, "warmup": True}, {**step, "warmup": False}]
    return {"loaded_bytes": 10**9, "peak_bytes": 2 * 10**9, "rounds": rounds}


def test_a_cell_may_lack_a_contestant(report, tmp_path):
    """As after a contestant has been added: the old cells stay in the results until they are measured again."""
    old = {"answers": [8, 8], "contestants": {"ours": measured(2.0), "trl": measured(6.0)}}
    contestants = {"ours": measured(1.0), "ours_full": measured(1.5), "trl": measured(4.0)}
    new = {"answers": [8, 8], "contestants": contestants}
    results = {"cells": {"full/dpo/64/equal": old, "full/dpo/96/equal": new}}
    report.write(results, tmp_path)
    written = json.loads((tmp_path / "forward.json").read_text())["cells"]
    assert [written[name]["summary"]["ours"]["speed"] for name in sorted(written)] == [3.0, 4.0]
    assert "ours_full" not in written["full/dpo/64/equal"]["summary"]
    assert (tmp_path / "forward.png").stat().st_size > 0
    assert report.table(results).row_count == 5
