"""The prediction against peaks that a GPU has reported: an 8B with LoRA, LOGO 1 + 2, by memory levers."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.longseq import ATTENTION, head_slices
from align.longseq.checkpointing import apply_checkpointing
from align.models.settings import ModelSettings
from align.planning.architecture import Architecture, measure, read_config
from align.planning.head import head_bytes
from align.planning.job import Job, Levers, Precision, Rows, Strategy
from align.planning.memory import predict
from align.planning.workspace import casts, kernel_workspace
from tests.planning.test_planning import CPU, ROWS, live_peak
from tests.tiny import tiny_model

FOUND = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu" / "first_look-H100.json"
LENGTH = json.loads(FOUND.read_text())["length"]
GPU = replace(CPU, device="cuda")  # no runtime: torch counts its own tensors alone


@pytest.fixture(scope="module")
def llama() -> Architecture:
    settings = ModelSettings(path="meta-llama/Meta-Llama-3-8B-Instruct", adapter=Lora(r=16))
    return measure(read_config(settings)[0], settings)


@pytest.mark.parametrize("name", [name for name, cell in LENGTH.items() if isinstance(cell, dict)])
def test_peaks_of_an_h100(name, llama, monkeypatch):
    """Within 3 %, with all heads at once and the last norm over the whole row, as it was then.

    `full {'mlp_chunk': 4096} 65536` is mode, levers and tokens of the prompt, with answers of 512.
    """
    monkeypatch.setattr(head_slices, "SCRATCH", math.inf)
    mode, _, rest = name.partition(" ")
    levers, _, prompt = rest.rpartition(" ")
    strategy = Strategy(levers=Levers(mode, **ast.literal_eval(levers)))
    then = replace(llama, norm_of_scored=False)
    memory = predict(then, Job(Rows(int(prompt), (512,) * 3), Precision(2)), strategy, GPU)
    assert memory.total / 2**30 == pytest.approx(LENGTH[name]["peak_gib"], rel=0.03)


def test_what_did_not_fit_is_not_predicted_to(llama):
    """79.18 GiB in all: both lengths that ended in an OutOfMemoryError are predicted to need more."""
    then = replace(llama, norm_of_scored=False)
    for prompt, levers in ((131072, Levers()), (262144, Levers("full", mlp_chunk=4096))):
        memory = predict(then, Job(Rows(prompt, (512,) * 3), Precision(2)), Strategy(levers=levers), GPU)
        assert memory.total > 79.18 * 2**30


def test_long_rows_go_a_few_heads_at_a_time(llama):
    """A prompt of 512K tokens on an 80 GB card: 8 slices, an eighth of the workspace and of what a kernel returns."""
    tokens, width = 2**19, 4096
    few = kernel_workspace(llama, Precision(2), Strategy(), tokens)
    assert few == (4 * width + 2 * 2 * width) * tokens / 8 - 2 * width * tokens * 7 / 8
    assert kernel_workspace(llama, Precision(2), Strategy(), 2**13) == 8 * width * 2**13


def test_kernels_take_by_heads_and_type(llama):
    """Q of 4,096: fp32 gradients 4·Q, and those of keys and values for each query head; a lone head has none."""
    alone = kernel_workspace(llama, Precision(2), Strategy(), 1000)
    assert alone == (4 * 4096 + 2 * 2 * 4096) * 1000
    assert kernel_workspace(llama, Precision(4), Strategy(), 1000) == 4 * 4 * 4096 * 1000
    spread = kernel_workspace(llama, Precision(2), Strategy("ddp", "ulysses", 32), 1000)
    assert spread == 4 * 4096 * 1000  # a query head and its keys on each rank
    gathered = kernel_workspace(llama, Precision(2), Strategy("ddp", "gather", 4), 1000)
    assert gathered == (4 * 4096 + 4 * 2 * 2 * 4096) * 1000


def test_a_cpu_has_no_such_part(llama, monkeypatch):
    """All heads at once: a few at a time take less than what follows the kernel."""
    monkeypatch.setattr(head_slices, "SCRATCH", math.inf)
    job, strategy = (
        Job(Rows(65536, (512,) * 3), Precision(2)),
        Strategy(levers=Levers("full", mlp_chunk=4096)),
    )
    with_kernel, without = (predict(llama, job, strategy, machine).total for machine in (GPU, CPU))
    assert with_kernel > without


@pytest.mark.parametrize(
    ("mode", "chunk"), [("full", None), ("keep_attention", None), ("none", None), ("full", 128)]
)
def test_adapters_cast_their_inputs(mode, chunk):
    """fp32 adapters over bf16 weights, against torch's own count, within 15 %; over fp32 weights nothing is cast."""
    sizes = {"hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6, "head_dim": 32}
    base = tiny_model("llama", num_hidden_layers=6, **sizes).to(torch.bfloat16)
    base.set_attn_implementation(ATTENTION)
    settings = ModelSettings(adapter=Lora(r=4))
    architecture = measure(base.config, settings)
    job = Job(ROWS, Precision(2), optimizer_slots=0)
    assert architecture.adapted_attention == 4 * 192
    assert casts(architecture, job) == (4 * 3 * 192, 0)
    assert casts(architecture, replace(job, precision=Precision(4))) == (0, 0)
    model = add_adapter(base, settings.adapter).train()
    apply_checkpointing(model, mode, mlp_chunk=chunk)
    memory = predict(architecture, job, Strategy(levers=Levers(mode, mlp_chunk=chunk)), CPU)
    predicted = memory.gradients + memory.checkpoints + memory.transient
    assert predicted == pytest.approx(live_peak(model, ROWS), rel=0.15)


def test_the_last_norm_reads_the_scored_tokens(llama):
    """Of 131,072 tokens in bf16 24.8 bytes for each of 4,096 numbers; with 512 scored ones 2 · 2, and theirs."""
    assert llama.norm_of_scored
    tokens = 131072
    row, scored = (
        head_bytes(llama, Precision(2), logits_chunk=512, tokens=tokens, scored=512, norm_of_scored=each)
        for each in (False, True)
    )
    assert row == 24.8 * 4096 * tokens
    logits = 512 * 128256 * 10
    assert scored == 2 * 2 * 4096 * tokens + (3 * 2 + 4) * 4096 * 512 + logits


def test_inputs_that_come_back_early_are_counted(llama):
    """With `memory.prefetch` 3 two more layers' inputs, 4,096 numbers of 2 bytes a token, are on the device."""
    job = Job(Rows(65536, (512,) * 3), Precision(2))
    levers = Levers("full", offload="host", mlp_chunk=2048)
    one, three = (
        predict(llama, job, Strategy(levers=replace(levers, prefetch=depth)), GPU) for depth in (1, 3)
    )
    assert three.checkpoints - one.checkpoints == 2 * 8192 * job.rows.tokens
    assert one.host - three.host == 2 * 8192 * job.rows.tokens
