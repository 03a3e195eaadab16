"""`accelerate launch -m align.train` on several processes ends with the weights of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from align.training.metric_names import ROWS
from tests.forked import run
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import save_tiny, save_tiny_composite

CPU_FORMS = Path(__file__).parents[2] / "launchers" / "accelerate" / "cpu"
COMMON = [
    *("trainer.optim=sgd", "trainer.learning_rate=0.05", "trainer.lr_scheduler_type=constant"),
    *("trainer.num_train_epochs=2", "trainer.gradient_accumulation_steps=1", "trainer.use_cpu=true"),
    *("positions=logo", "positions.target_length=4096", "data.eval_size=3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 14)  # 11 to train on: ragged for every division below
    return folder


def start(
    folder: Path, name: str, processes: int, *overrides: str, flags: tuple[str, ...] = ("--multi_gpu",)
) -> str:
    """Runs the command, one process as a fork; returns what it printed."""
    words = [
        *(f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}"),
        *(f"output={folder / name}", *COMMON, *overrides),
    ]
    if processes == 1:
        said = folder / f"{name}.log"
        assert run(["align", "train", *words]) == [0], said.read_text()[-3000:]
        return said.read_text()
    launch = [sys.executable, "-m", "accelerate.commands.launch", *flags]
    launch += ["--num_processes", str(processes), "--main_process_port", "0", "-m", "align.train"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *words], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def train(folder: Path, name: str, processes: int, *overrides: str, **flags: Any) -> tuple[dict, dict]:
    """Runs the command; returns the final weights and the contents of results.json."""
    start(folder, name, processes, *overrides, **flags)
    results = json.loads((folder / name / "results.json").read_text())
    (weights,) = (folder / name / "model").glob("*model.safetensors")
    return load_file(weights), results


@pytest.fixture(scope="module")
def one_process(folder) -> tuple[dict, dict]:
    return train(folder, "one", 1, "trainer.per_device_train_batch_size=4")


def held_out(results: dict) -> dict[str, float]:
    """Held-out metrics before and after training, without what the run cost."""
    return {
        f"{when}/{name}": value
        for when in ("before", "after")
        for name, value in results[when].items()
        if name in ROWS
    }


CASES = [
    # One group of two: its last, ragged batch has nobody to share with.
    pytest.param(2, 4, "parallel=auto", id="auto 2"),
    pytest.param(4, 2, "parallel=gather", id="data-parallel 2 x gather 2", marks=pytest.mark.slow),
    pytest.param(2, 2, "parallel=none", id="data-parallel 2", marks=pytest.mark.slow),
    pytest.param(4, 2, "parallel=ulysses", id="data-parallel 2 x ulysses 2", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("processes", "batch", "parallel"), CASES)
def test_weights_equal_one_process(folder, one_process, processes, batch, parallel):
    """Same prompts a step, ragged last steps, clipping active: weights to 1e-5, the same metrics."""
    name = f"{processes}-{parallel.replace('=', '-')}"
    weights, results = train(
        folder, name, processes, f"trainer.per_device_train_batch_size={batch}", parallel
    )
    assert_close(weights, one_process[0], tolerance=1e-5)
    expected = held_out(one_process[1])
    assert len(expected) == 2 * len(ROWS)
    assert held_out(results) == pytest.approx(expected, rel=1e-4, abs=1e-4)


LAUNCHERS = sorted(path.stem for path in CPU_FORMS.glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_weights_under_each_cpu_configuration_equal_one_process(folder, one_process, name):
    """launchers/accelerate/cpu/ at degree 2, as a user starts it, with SGD, clipping and a ragged end of the epoch."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    weights, results = train(
        folder,
        name,
        2,
        *("parallel=gather", "trainer.per_device_train_batch_size=4"),
        flags=("--config_file", str(CPU_FORMS / f"{name}.yaml")),
    )
    assert_close(weights, one_process[0], tolerance=1e-5)
    assert held_out(results) == pytest.approx(held_out(one_process[1]), rel=1e-4, abs=1e-4)


LORA = ("model.lora.r=4", "model.lora.target_modules=[q_proj,v_proj]")
# Against a reference: a frozen copy, whole or split, and the policy itself without its adapter.
REFERENCES = {
    "as the wrapper has it": ("reference.sharding=null",),
    "split": ("reference.sharding=full",),
    "adapter off": LORA,
    "adapter off and tiled": (*LORA, "memory.mlp_chunk=16"),
}


@pytest.fixture(scope="module")
def against_a_reference(folder) -> dict[bool, tuple[dict, dict]]:
    """With and without LoRA."""
    common = ("trainer.per_device_train_batch_size=4", "method=dpo")
    return {
        False: train(folder, "dpo", 1, *common),
        True: train(folder, "dpo-lora", 1, *common, *LORA),
    }


@pytest.mark.slow
@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("name", LAUNCHERS)
def test_references_under_each_cpu_configuration(folder, against_a_reference, name, reference):
    """DPO ends where one process ends; ZeRO-3 splits a frozen copy by default, and frozen weights come and go there."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    settings = REFERENCES[reference]
    expected, expected_results = against_a_reference[LORA[0] in settings]
    weights, results = train(
        folder,
        f"dpo-{name}-{reference}",
        2,
        *("parallel=gather", "trainer.per_device_train_batch_size=4", "method=dpo", *settings),
        flags=("--config_file", str(CPU_FORMS / f"{name}.yaml")),
    )
    assert_close(weights, expected, tolerance=1e-5)
    assert held_out(results) == pytest.approx(held_out(expected_results), rel=1e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "zero3"])
def test_filling_a_cache_under_a_cpu_configuration(folder, against_a_reference, name):
    """The reference fills the cache alone, on both processes; training from it reads no reference, and ends alike."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    common = (
        *("parallel=gather", "trainer.per_device_train_batch_size=4", "method=dpo"),
        f"reference.cache={folder / name}-cache",
    )
    flags = ("--config_file", str(CPU_FORMS / f"{name}.yaml"))
    said = start(folder, f"fill-{name}", 2, *common, "reference.fill_only=true", flags=flags)
    assert "14 prompts" in said
    weights, results = train(folder, f"from-cache-{name}", 2, *common, flags=flags)
    assert results["training"]["reference/tokens"] == 0
    assert_close(weights, against_a_reference[False][0], tolerance=1e-5)


@pytest.fixture(scope="module")
def composite(tmp_path_factory) -> Path:
    """Mistral-3, whose checkpoints name weights in another way than the library's model does."""
    folder = tmp_path_factory.mktemp("composite")
    save_tiny_composite(folder / "model", "mistral3")
    make_rows(folder / "rows.jsonl", 14)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_composite_under_each_cpu_configuration(composite, name):
    """Frozen parts in every wrapper, beside a frozen copy that ZeRO-3 splits: the same weights under the same names."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    common = ("trainer.per_device_train_batch_size=4", "method=dpo")
    expected, _ = train(composite, f"one-beside-{name}", 1, *common)
    flags = ("--config_file", str(CPU_FORMS / f"{name}.yaml"))
    weights, _ = train(composite, name, 2, "parallel=gather", *common, flags=flags)
    start = load_file(composite / "model" / "model.safetensors")
    assert weights.keys() == expected.keys() == start.keys()
    assert_close(weights, expected, tolerance=1e-5)
    for kept in (key for key in start if key.startswith(("vision_tower", "multi_modal_projector"))):
        assert torch.equal(weights[kept], start[kept])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_extra_tokens_under_each_cpu_configuration(folder, name):
    """Rows that are added to tables which ZeRO-3 has split: the same weights as in one process."""
    if name.startswith("zero"):
        pytest.importorskip("deepspeed")
    common = ("trainer.per_device_train_batch_size=4", "method=dpo", 'model.extra_tokens=["[IND]"]')
    expected, _ = train(folder, f"tokens-one-beside-{name}", 1, *common)
    flags = ("--config_file", str(CPU_FORMS / f"{name}.yaml"))
    weights, _ = train(folder, f"tokens-{name}", 2, "parallel=gather", *common, flags=flags)
    assert weights["model.embed_tokens.weight"].shape[0] == 129
    assert_close(weights, expected, tolerance=1e-5)
