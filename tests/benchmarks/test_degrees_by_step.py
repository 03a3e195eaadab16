"""benchmarks/degrees_by_step.py: steps and seconds derived by hand, and what no way can beat."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass

import numpy as np
import pytest

from align.data.orders import Buckets, Shuffled
from benchmarks import degrees_by_step
from benchmarks.degrees_by_step import Row, by_degree, compare, long_answers, step_seconds, steps_of


@dataclass(frozen=True)
class Eight:
    """Eight GPUs: T seconds on one of them, (1 + n/20)·T/n on n; rows beyond `fits` tokens a GPU do not fit."""

    fits: float = float("inf")
    degrees = (1, 2, 4, 8)

    @dataclass(frozen=True)
    class Machine:
        count: int = 8

    machine = Machine()

    def table(self, rows):
        spread = [[row.tokens * (1 + (n > 1) * n / 20) / n for n in self.degrees] for row in rows]
        held = [[row.tokens <= self.fits * n for n in self.degrees] for row in rows]
        return np.where(held, spread, np.inf)

    def wrapper(self):
        return 0.5


def test_a_step_takes_what_its_slowest_group_takes():
    seconds = np.array([8.0, 1, 1, 8])
    assert step_seconds(seconds, groups=2, shared_out=False) == 9  # 8 + 1 and 1 + 8
    assert step_seconds(np.array([8.0, 1, 8, 1]), groups=2, shared_out=False) == 16
    assert step_seconds(np.array([8.0, 1, 8, 1]), groups=2, shared_out=True) == 9
    assert step_seconds(np.array([8.0]), groups=4, shared_out=True) == 8  # three groups read nothing
    assert step_seconds(np.array([8.0, np.inf]), groups=2, shared_out=True) == np.inf


def test_seconds_by_degree():
    """Four rows of 8 tokens on 8 GPUs: 8 seconds at degree 1, 4.4 at degree 2, two and four rounds at 4 and 8."""
    costs, rows = Eight(), [Row(6, (1, 1))]
    found = by_degree(costs, costs.table(rows), [np.zeros(4, dtype=int)], shared_out=True)
    np.testing.assert_allclose(found, [[8, 4.4, 2 * 2.4, 4 * 1.4]])


def test_steps_are_those_of_the_order():
    rows = [Row(2**k, (1, 1)) for k in range(8)]
    drawn = np.random.default_rng(0).integers(0, 8, 40)
    for order in (Shuffled(), Buckets(steps=10)):
        steps = steps_of(order, rows, drawn, 4)
        assert np.array_equal(np.sort(np.concatenate(steps)), np.sort(drawn))
    assert all(np.ptp(step) <= 4 for step in steps)


def test_a_choice_is_never_slower_than_what_it_may_choose(monkeypatch):
    """Rows of 100 and 1,000 tokens, of which a GPU holds 250: steps of short rows are read at degree 1, all at 4."""
    monkeypatch.setattr(degrees_by_step, "STEPS", 10)
    rows = [Row(tokens - 2, (1, 1)) for tokens in (100, 1000) for _ in range(20)]
    ways = compare(Eight(fits=250), rows, prompts=16)
    assert ways["one degree, shared out"] <= ways["one degree, as they come"]
    assert ways["a degree a step, shared out"] <= ways["one degree, shared out"]
    assert ways["a degree a step, buckets"] < ways["one degree, buckets"] - 1
    assert ways["a degree a row"] <= ways["a degree a step, shared out"]
    assert compare(Eight(fits=100), rows, prompts=16) == {}, "no degree holds the longest row"


def test_rows_with_long_answers(tmp_path):
    (tmp_path / "longbench_write").mkdir()
    lines = [json.dumps({"prompt": "Write.", "length": length}) for length in (100, 10_000)]
    (tmp_path / "longbench_write" / "longbench_write.jsonl").write_text("\n".join(lines))
    assert long_answers(tmp_path, 2) == [Row(100, (260, 260)), Row(100, (26_000, 26_000))]


def test_rows_of_pairs_and_speeches(tmp_path):
    (tmp_path / "documents").mkdir()
    with zipfile.ZipFile(tmp_path / "documents" / "state_union.zip", "w") as archive:
        archive.writestr("a.txt", "x" * 50_000)
    (tmp_path / "preference").mkdir()
    turns = {
        "conversations": [{"value": "y" * 400}],
        "chosen": {"value": "z" * 50},
        "rejected": {"value": "z" * 50},
    }
    (tmp_path / "preference" / "dpo_en_demo.json").write_text(json.dumps([turns]))
    speech, pair = degrees_by_step.pairs_and_speeches(tmp_path, 1)
    assert (speech, pair) == (Row(10_000 - 1024, (512, 512)), Row(50, (25, 25)))


def test_the_results_are_of_every_cluster_and_row():
    """And a gain is what its seconds say."""
    found = json.loads(degrees_by_step.RESULTS.read_text())["cells"]
    assert {(cell["data"], cell["stretch"]) for cell in found} == {
        (name, stretch) for name in degrees_by_step.DATA for stretch in degrees_by_step.STRETCHES
    }
    for cell in found:
        ways = cell["seconds"]
        one = min(ways["one degree, shared out"], ways["one degree, buckets"])
        flexible = min(ways["a degree a step, shared out"], ways["a degree a step, buckets"])
        assert cell["gain"] == pytest.approx(one / flexible - 1, abs=1e-12)
