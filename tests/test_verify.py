"""`align verify` as a user meets it: exit codes, the table, the launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from tests.families import save_family
from tests.forked import run
from tests.tiny import save_tiny

LAUNCHERS = Path(__file__).parents[1] / "launchers" / "accelerate" / "cpu"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, "qwen3", num_hidden_layers=5)
    return folder


def verify(folder: Path, *overrides: str, launch: tuple[str, ...] = (), **environment: str):
    """The command in a process of its own, or under `accelerate launch` with the arguments `launch`."""
    module = ["-m", "align.verify"]
    if launch:
        module = ["-m", "accelerate.commands.launch", "--main_process_port", "0", *launch, *module]
    command = [sys.executable, *module, f"model.path={folder}", *overrides]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=240)


def verify_forked(folder: Path, tmp_path: Path, *overrides: str) -> tuple[int | None, str]:
    """The same without the time that Python and torch take to start: its exit code, and what it said."""
    log = tmp_path / "said"
    (code,) = run(["align", "verify", f"model.path={folder}", *overrides], log=log)
    return code, log.read_text()


def test_one_process_is_exact_with_every_memory_lever(folder):
    done = verify(folder, "model.lora.r=4", "memory.mlp_chunk=50", "memory.offload=disk")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "shared prefix" in done.stdout and "yes" in done.stdout
    # q, k, v, o of two layers, A and B each.
    assert "16 gradients compared" in done.stdout


def test_an_error_above_the_tolerance_gives_exit_code_one(folder, tmp_path):
    """fp32 rounding alone is above 1e-12. Fused kernels, which it does not compute by, are left out in a line."""
    code, said = verify_forked(folder, tmp_path, "tolerance=1e-12", "model.kernels=liger")
    assert code == 1
    assert "NO" in said
    assert "model.kernels=liger is left out." in said


def test_what_rounding_alone_moves_counts_as_exact(tmp_path):
    """A linear attention in chunks, in float32: padded rows move as far with the last bit of their weights."""
    save_family(tmp_path / "model", "qwen3_next", weights=False)
    words = ("adapter=lora", "adapter.r=4", "seed=12")
    code, said = verify_forked(tmp_path / "model", tmp_path, *words, "tolerance=1e-5")
    assert code == 1, said
    (tmp_path / "said").unlink()
    code, said = verify_forked(tmp_path / "model", tmp_path, *words)
    assert code == 0, said
    assert "twice what the last bit of the weights changes on padded rows" in said


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("doge", "asks for `attention_mask`"),
        ("musicgen", "no text decoder can be told"),
    ],
)
def test_an_architecture_that_is_not_computed_is_refused(tmp_path, kind, sentence):
    """By its configuration alone: the folder holds no weights."""
    CONFIG_MAPPING[kind]().save_pretrained(tmp_path / "model")
    code, said = verify_forked(tmp_path / "model", tmp_path)
    assert code == 2
    assert sentence in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("prompt_tokens=1", "prompt_tokens=1 must be a whole number from 2 on."),
        ("memory.offload=host", "memory.offload=host moves activations off an accelerator"),
        ("tolerance=0", "tolerance=0 must be a positive number, or auto."),
        ("model.attention=flash2", "which model.attention=flash2 does not take"),
        ("parallel=gather", "parallel.degree=2 does not divide the 1 process "),
    ],
)
def test_bad_settings_end_in_one_sentence(folder, tmp_path, override, sentence):
    code, said = verify_forked(folder, tmp_path, override)
    assert code == 2
    assert sentence in said
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ulysses", "gather"])
def test_sharded_under_ddp(folder, kind):
    launch = ("--multi_gpu", "--num_processes", "4")
    done = verify(folder, f"parallel={kind}", launch=launch, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"sharded, {kind} × 2" in done.stdout
    assert "4 processes, DDP" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_sharded_under_deepspeed(folder, stage):
    pytest.importorskip("deepspeed")
    """By the launcher that ships, whose file leaves micro-batches to the trainer (`auto`)."""
    launch = ("--config_file", str(LAUNCHERS / f"zero{stage}.yaml"), "--num_processes", "2")
    done = verify(folder, "parallel=gather", launch=launch)
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"ZeRO-{stage}" in done.stdout


@pytest.mark.slow
def test_a_wrapper_that_is_silently_replaced_is_refused(folder):
    """accelerate ignores FSDP under ACCELERATE_USE_CPU and wraps in DDP."""
    launch = ("--use_fsdp", "--fsdp_version", "2", "--num_processes", "2")
    done = verify(folder, "parallel=gather", launch=launch, ACCELERATE_USE_CPU="true")
    assert done.returncode != 0
    assert "The launch asks for FSDP, but accelerate wrapped the model in DDP" in done.stderr
