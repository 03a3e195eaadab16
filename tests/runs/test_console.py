"""What stands on the console of a command, and what its log file keeps."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.test_cli import make_rows
from tests.tiny import save_tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("console")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 8)
    command = [f"data.path={folder / 'rows.jsonl'}", f"model.path={folder / 'model'}"]
    command += [f"output={folder / 'run'}", "trainer.max_steps=2", "trainer.gradient_accumulation_steps=1"]
    done = subprocess.run(
        [sys.executable, "-m", "align.train", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "run", done


def test_every_line_is_ours(trained):
    """On stderr the run's own progress, on stdout its table and files; nothing of a library on either."""
    _, done = trained
    assert {line.split()[0] for line in done.stderr.splitlines()} == {"This", "held-out", "step"}
    table, *files = done.stdout.partition("\npolicy")[::2]
    assert table.startswith("logo: ")
    assert [line.split()[0] for line in ("policy" + files[0]).splitlines()] == [
        "policy",
        "results",
        "picture",
    ]


def test_the_log_file_keeps_what_libraries_say(trained):
    pytest.importorskip("deepspeed")
    folder, _ = trained
    assert "[DeepSpeed][WARNING] Setting accelerator to CPU" in (folder / "train.log").read_text()


CODE = """
import logging, warnings
from align.core.errors import AlignWarning
from align.runs.console import quiet_libraries
logging.basicConfig(filename="all.log", format="%(name)s %(message)s")
around = quiet_libraries()
around.__enter__()
library = logging.getLogger("library")
library.addHandler(logging.StreamHandler())
library.propagate = False
library.warning("from a library")
own = logging.getLogger("align.data")
own.addHandler(logging.StreamHandler())
own.warning("from us")
warnings.warn("a library is going to change")
warnings.warn("read this", AlignWarning)
"""


def test_records_and_warnings_go_where_they_belong(tmp_path):
    """A library's own handler and `propagate=False` change nothing; our sentences stand on the console."""
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stderr.splitlines() == ["from us", "align: read this"]
    kept = (tmp_path / "all.log").read_text()
    assert "library from a library\n" in kept
    assert "align.data from us\n" in kept
    assert "a library is going to change" in kept
    assert "read this" not in kept
