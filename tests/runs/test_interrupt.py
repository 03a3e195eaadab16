"""Ctrl-C at any time is one sentence; the same command then goes on, and once more says that all is done."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest

from align.runs import exit_codes
from align.training.finish import _what_is_lost
from tests.forked import forked, run, wait_for
from tests.rows import make_rows
from tests.tiny import save_tiny

# Ctrl-C while a module is looked for.
EARLY = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from align import cli
sys.argv = ["align", "train", "data.path=rows.jsonl", "model.path=none"]
cli.main()
"""


@pytest.mark.parametrize(
    "name", ["align.runs.console", "align.train", "omegaconf", "hydra", "align.runs.flags"]
)
def test_while_libraries_are_imported(name):
    done = subprocess.run(
        [sys.executable, "-c", EARLY.format(name=name)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (exit_codes.INTERRUPTED, "align train: interrupted.\n")


@pytest.mark.parametrize("module", ["align", "align.cli"])
def test_as_a_module_it_is_the_console_script(module):
    words = [sys.executable, "-m", module]
    shown = subprocess.run([*words, "train", "--cfg", "job"], capture_output=True, text=True, check=True)
    assert "max_steps: -1" in shown.stdout
    refused = subprocess.run([*words, "trian"], capture_output=True, text=True, check=False)
    assert refused.returncode == exit_codes.USAGE
    assert "unknown command 'trian'" in refused.stderr


def test_what_is_lost_is_counted_from_the_last_sealed_checkpoint(tmp_path):
    assert (
        _what_is_lost(3, tmp_path)
        == "Interrupted at step 3 with nothing saved: the same command begins anew."
    )
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-2" / "seal.json").write_text("{}")
    assert f"goes on from {tmp_path / 'checkpoint-2'}, losing 3 steps." in _what_is_lost(5, tmp_path)
    assert "losing 1 step." in _what_is_lost(3, tmp_path)


def test_in_training_then_on_to_the_end_and_once_more(tmp_path):
    """Interrupted it names the checkpoint, resumed too; repeated it trains nothing and leaves its results alone."""
    save_tiny(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", 12)
    output, log = tmp_path / "run", tmp_path / "run.log"
    words = ["align", "train", f"model.path={tmp_path / 'model'}", f"data.path={tmp_path / 'rows.jsonl'}"]
    words += [f"output={output}", "trainer.save_steps=2", "trainer.gradient_accumulation_steps=1"]
    words += ["trainer.num_train_epochs=12", "trainer.use_cpu=true"]
    process = forked(words)
    wait_for((output / "checkpoint-4" / "seal.json").exists, process)
    os.kill(process.pid or 0, signal.SIGINT)
    process.join()
    said = log.read_text()
    assert process.exitcode == exit_codes.INTERRUPTED, said
    assert "Traceback" not in said
    lost = re.search(
        r"^Interrupted at step (\d+): the same command goes on from (\S+), losing", said, re.MULTILINE
    )
    assert lost is not None, said
    assert said.rstrip().endswith("align train: interrupted.")

    log.unlink()
    assert run(words) == [0]
    said = log.read_text()
    assert f"The run goes on from {lost[2]}, at step {lost[2].rpartition('-')[2]} of " in said
    results = (output / "results.json").read_bytes()

    log.unlink()
    assert run(words) == [0]
    said = log.read_text()
    assert f"The run in {output} is finished and nothing is trained" in said
    assert "step " not in said.partition("\n")[2].partition("logo:")[0]
    assert (output / "results.json").read_bytes() == results
