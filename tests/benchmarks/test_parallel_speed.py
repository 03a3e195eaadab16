"""benchmarks/parallel_speed.py on a tiny model: the contestants compute the same, and the ratios are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import parallel_speed
from tests.tiny import tiny_model


def test_ratios():
    """10 s against 8 s is 1.25 × the speed; 40 of 100 bytes are 0.4 ×; the loss is off by 1e-3 of 2."""
    alone = {"seconds": 10.0, "processor_seconds": 18.0, "activation_bytes": 100.0, "loss": 2.0}
    group = {"seconds": 8.0, "processor_seconds": 20.0, "activation_bytes": 40.0, "loss": 2.002}
    found = parallel_speed.compare([group], [alone])
    assert found["speed"] == 1.25
    assert found["processor_speed"] == 0.9
    assert found["activation_memory"] == 0.4
    assert found["loss_difference"] == pytest.approx(1e-3)


def test_contestants_compute_the_same(tmp_path: Path):
    """Both exchanges and one process, on the same row."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    tiny_model().save_pretrained(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--prompt", "96", "--answer", "9", "--rounds", "1"]
    parallel_speed.main([*words, "--results", str(tmp_path)])
    written = json.loads((tmp_path / "parallel_96.json").read_text())
    assert set(written["rounds"]) == {"none/1", "ulysses/2", "gather/2"}
    for row in written["summary"].values():
        assert row["loss_difference"] < 1e-5
        assert row["speed"] > 0
