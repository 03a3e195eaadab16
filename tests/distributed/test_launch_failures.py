"""Nothing hangs: what goes wrong in one process ends the whole launch, and what differs is found at the start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rows import make_rows
from tests.tiny import save_tiny

SECONDS_TO_END = 120


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 8)
    return folder


def launch(
    folder: Path, module: list[str], *overrides: str, flags: tuple[str, ...] = ("--multi_gpu",), **env: str
):
    """Two processes of `module` under `accelerate launch`; what they said and how they ended."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", *flags, "--num_processes", "2"),
        *("--main_process_port", "0", "-m", *module, f"model.path={folder / 'model'}"),
        *(
            f"data.path={folder / 'rows.jsonl'}",
            f"output={folder / 'out'}",
            "trainer.gradient_accumulation_steps=1",
        ),
        *overrides,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | env
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def said(done: subprocess.CompletedProcess) -> set[str]:
    """The sentences of `align train`; two processes may say the same one, even within one line."""
    return {text.strip() for text in re.split(r"align train: |\n", done.stderr)}


@pytest.mark.parametrize("way", ["in_loss", pytest.param("in_data", marks=pytest.mark.slow)])
def test_a_process_that_raises_ends_the_job_with_its_message(folder, way):
    """The other process waits in a collective then, and would for ever."""
    done = launch(folder, ["tests.launched", way], "parallel=gather")
    ended = time.time()
    assert done.returncode != 0
    assert "RuntimeError: rank 1 ran into a wall" in done.stderr
    raised = float(re.search(r"raises at (\d+)", done.stderr)[1])
    assert ended - raised < SECONDS_TO_END


def test_settings_that_differ_between_processes_are_named(folder):
    """Before any data are read."""
    done = launch(folder, ["tests.launched", "seed=7"], "method=simpo")
    assert done.returncode != 0
    sentence = (
        "Processes 0 and 1 were started with different settings (seed=42 against seed=7): "
        "start every process with the same command."
    )
    assert sentence in said(done)
    assert "Traceback" not in done.stderr.partition("Processes 0 and 1")[0]


@pytest.mark.slow
def test_a_degree_that_differs_is_named(folder):
    """Groups are formed later: without the comparison each process would make other ones."""
    done = launch(folder, ["tests.launched", "parallel.degree=1"], "parallel=gather")
    assert "parallel.degree=2 against parallel.degree=1" in done.stderr


@pytest.mark.slow
def test_data_that_differ_between_processes_are_found(folder):
    """Another number of rows on one machine is another number of steps."""
    done = launch(folder, ["tests.launched", "fewer_rows"], "parallel=none")
    assert done.returncode != 0
    assert "came with different data" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "environment", "sentence"),
    [
        (("--use_fsdp", "--fsdp_version", "2"), {}, "FSDP was asked for, which accelerate leaves out on CPU"),
        (
            ("--use_deepspeed", "--zero_stage", "2"),
            {"ACCELERATE_USE_CPU": "true"},
            "DeepSpeed was asked for, which accelerate leaves out without a word where ACCELERATE_USE_CPU is set",
        ),
    ],
)
def test_a_wrapper_that_accelerate_leaves_out_is_refused(folder, flags, environment, sentence):
    done = launch(folder, ["align.train"], flags=flags, **environment)
    assert done.returncode != 0
    assert any(line.startswith(sentence) for line in said(done)), done.stderr[-2000:]
