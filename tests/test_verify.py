"""`align verify` as a user meets it: exit codes, the table, the launch, and what the small copy keeps."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from align.core.config import typed
from align.longseq import ATTENTION, pack
from align.longseq.parallel import SequenceParallel, start_parallel
from align.longseq.settings import MemorySettings
from align.models.settings import ModelSettings
from align.verification.plain_rows import plain_pair_logps
from align.verification.small_copy import build_small_copy, random_examples
from align.verify import report, run_all, start_accelerator
from tests.distributed import run_distributed
from tests.longseq import plain
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("qwen3", num_hidden_layers=5).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def verify(folder: Path, *overrides: str, launch: tuple[str, ...] = (), **environment: str):
    """The command in a process of its own, or under `accelerate launch` with the arguments `launch`."""
    module = ["-m", "align.verify"]
    if launch:
        module = ["-m", "accelerate.commands.launch", "--main_process_port", "0", *launch, *module]
    command = [sys.executable, *module, f"model.path={folder}", *overrides]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "160"} | environment
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=240)


def test_one_process_is_exact_with_every_memory_lever(folder):
    done = verify(folder, "model.lora.r=4", "memory.mlp_chunk=50", "memory.offload=disk")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "shared prefix" in done.stdout and "yes" in done.stdout
    # q, k, v, o of two layers, A and B each.
    assert "16 gradients compared" in done.stdout


def test_an_error_above_the_tolerance_gives_exit_code_one(folder):
    """fp32 rounding alone is above 1e-12."""
    done = verify(folder, "tolerance=1e-12")
    assert done.returncode == 1
    assert "NO" in done.stdout


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("prompt_tokens=1", "prompt_tokens=1 must be a whole number from 2 on."),
        ("memory.offload=host", "memory.offload=host moves activations off an accelerator"),
        ("tolerance=0", "tolerance=0 must be a positive number."),
        ("model.attention=flash2", "which model.attention=flash2 does not take"),
        ("parallel=gather", "parallel.degree=2 does not divide the 1 processes"),
    ],
)
def test_bad_settings_end_in_one_sentence(folder, override, sentence):
    done = verify(folder, override)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


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
    launch = ("--use_deepspeed", "--zero_stage", str(stage), "--num_processes", "2")
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


def test_the_small_copy_keeps_heads_and_widths(folder):
    small = build_small_copy(ModelSettings(path=str(folder)), attention="sdpa", seed=0).config
    assert (small.num_hidden_layers, small.num_attention_heads, small.num_key_value_heads) == (2, 4, 2)
    assert (small.hidden_size, small.head_dim, small.model_type) == (64, 16, "qwen3")


def test_plain_rows_agree_with_the_tests_own():
    """Two implementations, written apart."""
    model = tiny_model(vocab_size=512)
    examples = random_examples(3, prompt_tokens=20, answer_tokens=7, seed=1)
    with torch.no_grad():
        actual, expected = plain_pair_logps(model, examples), plain.plain_pair_logps(model, examples)
    torch.testing.assert_close(actual.chosen, expected.chosen)
    torch.testing.assert_close(actual.rejected, expected.rejected)
    assert torch.equal(actual.rejected_length, expected.rejected_length)


def test_random_examples_repeat_and_differ():
    first, second = (random_examples(4, prompt_tokens=20, answer_tokens=7, seed=1) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.prompt_ids, other.prompt_ids)
    assert len({len(example.prompt_ids) for example in first}) > 1
    assert pack(first).num_tokens == sum(example.num_tokens for example in first)


def without_gradient_of_others(parallel: SequenceParallel) -> SequenceParallel:
    """The exchange with the classic wrong backward: keys get no gradient from other ranks' queries."""

    def place(row, own):
        shard, layout = parallel.place(row, own)

        def exchange(query, key, value, attend):
            return layout.exchange(query, key.detach(), value, attend)

        return shard, dataclasses.replace(layout, exchange=exchange)

    return dataclasses.replace(parallel, place=place)


def verdicts(rank: int, size: int, folder: str) -> dict[str, bool]:
    """What `align verify` finds of each exchange as it is, and of the same with a wrong backward."""
    with initialize_config_module("hydra_conf", version_base="1.3"):
        config = compose("verify", [f"model.path={folder}"])
    model, memory = typed(ModelSettings, config, "model"), typed(MemorySettings, config, "memory")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    accelerator = start_accelerator()
    found = {}
    for kind in ("ulysses", "gather"):
        right = start_parallel(kind, size)
        for name, parallel in ((kind, right), (f"broken {kind}", without_gradient_of_others(right))):
            copies = [
                build_small_copy(model, attention=attention, seed=config.seed)
                for attention in ("sdpa", ATTENTION, ATTENTION)
            ]
            outcomes = run_all(config, memory, tuple(copies), accelerator, parallel)
            losses = [outcome.loss for outcome in outcomes]
            assert max(losses) - min(losses) < 1e-4, "a wrong backward does not show in the loss"
            found[name] = report(outcomes, model, config.tolerance, show=rank == 0)
    return found


def test_a_wrong_backward_is_found(folder):
    """The loss is exact then; only a gradient above the tolerance tells, and gives exit code 1."""
    for found in run_distributed(verdicts, 2, str(folder), timeout=120):
        assert found == {"ulysses": True, "broken ulysses": False, "gather": True, "broken gather": False}
