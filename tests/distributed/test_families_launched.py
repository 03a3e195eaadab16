"""Windows, sinks, states, masks and rows of their own on two processes: each launch ends with one process's weights."""

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

from tests.families import FAMILIES, make_pairs, save_family
from tests.forked import run

CPU_FORMS = Path(__file__).parents[2] / "launchers" / "accelerate" / "cpu"
COMMON = (
    *(
        "method=dpo",
        "data.eval_size=3",
        "trainer.max_steps=2",
        "trainer.optim=sgd",
        "trainer.learning_rate=1e-3",
    ),
    *(
        "trainer.gradient_accumulation_steps=1",
        "trainer.lr_scheduler_type=constant",
        "trainer.max_grad_norm=0",
    ),
    *("trainer.use_cpu=true", "trainer.disable_tqdm=true"),
)
# Family → launches: the configuration and the exchange.
LAUNCHES = [
    ("gemma3_text", "ddp", "none"),
    ("gemma3_text", "zero3", "none"),
    ("gemma3_text", "ddp", "ulysses"),
    ("gemma3_text", "ddp", "gather"),
    ("qwen3_next", "ddp", "none"),
    ("qwen3_next", "zero3", "none"),
    ("gpt_oss", "ddp", "ulysses"),
    ("gpt_oss", "ddp", "gather"),
    ("stablelm", "ddp", "none"),
    ("stablelm", "zero3", "none"),
    ("bloom", "ddp", "none"),
    ("bloom", "zero3", "none"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launched")
    make_pairs(folder / "rows.jsonl")
    return folder


@pytest.fixture(scope="module")
def alone(folder) -> Any:
    """Trains a family in one process, once: its output folder."""

    def train(kind: str) -> Path:
        if not (folder / kind).exists():
            save_family(folder / kind, kind)
            words = words_of(folder, kind, f"{kind}-alone", "trainer.per_device_train_batch_size=2")
            log = folder / f"{kind}.log"
            assert run(["align", "train", *words], log=log) == [0], log.read_text()[-3000:]
        return folder / f"{kind}-alone"

    return train


def words_of(folder: Path, kind: str, output: str, *more: str) -> list[str]:
    paths = (f"model.path={folder / kind}", f"data.path={folder / 'rows.jsonl'}", f"output={folder / output}")
    return [*paths, f"model.attention={FAMILIES[kind].attention}", *COMMON, *more]


def moved(base: Path, output: Path) -> dict[str, torch.Tensor]:
    """What training added to each weight."""
    before, after = (load_file(path / "model.safetensors") for path in (base, output / "model"))
    assert before.keys() == after.keys()
    return {name: after[name] - before[name] for name in before}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "form", "exchange"), LAUNCHES)
def test_two_processes_train_as_one(folder, alone, kind, form, exchange):
    if form == "zero3":
        pytest.importorskip("deepspeed")
    expected = alone(kind)
    output = f"{kind}-{form}-{exchange}"
    sizes = ("trainer.per_device_train_batch_size=1",)
    if exchange != "none":
        sizes = (f"parallel={exchange}", "parallel.degree=2", "trainer.per_device_train_batch_size=2")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CPU_FORMS / f"{form}.yaml"),
    ]
    launch += ["--main_process_port", "0", "-m", "align.train", *words_of(folder, kind, output, *sizes)]
    done = subprocess.run(launch, capture_output=True, text=True, env=os.environ, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    said = done.stderr.count("is a mixture of")  # by the first process alone
    assert said == ("MoE" in FAMILIES[kind].marks)
    wanted = moved(folder / kind, expected)
    found = moved(folder / kind, folder / output)
    scale = max(float(value.norm()) for value in wanted.values())
    for name, value in wanted.items():
        assert float((found[name] - value).norm()) <= 1e-3 * float(value.norm()) + 1e-6 * scale, name
    results = [json.loads((path / "results.json").read_text()) for path in (expected, folder / output)]
    assert [each["before"]["eval_rewards/margins"] for each in results] == [0.0, 0.0]
    losses = [each["after"]["eval_loss"] for each in results]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
