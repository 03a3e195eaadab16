"""In which precision policy and reference compute: what trains is float32, and the two are equal at step 0."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from align.adapters.lora import Lora
from align.core.errors import AlignWarning
from align.models import loading, precision
from align.models.precision import Precision, autocasts, cast_parameters, training_dtype, warn_of_low_weights
from align.models.settings import ModelSettings
from align.reference.sources import computing_precision, keeps_float32_copy
from tests.rows import make_rows
from tests.tiny import save_tiny, tiny_model

CPU_FORMS = Path(__file__).parents[2] / "launchers" / "accelerate" / "cpu"
LORA = Lora(r=8)


@pytest.mark.parametrize(
    ("model", "dtype", "lowered"),
    [
        (ModelSettings(), "float32", True),
        (ModelSettings(adapter=LORA), "bfloat16", False),
        (ModelSettings(adapter=replace(LORA, modules_to_save=["embed_tokens"])), "float32", True),
        (ModelSettings(dtype="bfloat16"), "bfloat16", False),  # asked for by name
        (ModelSettings(dtype="float32"), "float32", False),
    ],
)
def test_weights_that_train_are_float32_on_a_gpu(monkeypatch, model, dtype, lowered):
    """Unless bfloat16 is asked for by name; products are bfloat16 where `auto` chose float32."""
    monkeypatch.setattr(precision, "bfloat16_here", lambda: True)
    assert training_dtype(model).dtype == dtype
    assert autocasts(model) == lowered


def test_without_a_gpu_all_is_float32(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_here", lambda: False)
    assert training_dtype(ModelSettings(adapter=LORA)).dtype == "float32"
    assert not autocasts(ModelSettings())


def test_what_does_not_train_is_bfloat16_on_a_gpu(monkeypatch):
    monkeypatch.setattr(loading, "bfloat16_here", lambda: True)
    assert loading.resolve_dtype("auto") == torch.bfloat16


def test_low_weights_that_train_are_said():
    model = tiny_model().to(torch.bfloat16)
    with pytest.warns(AlignWarning, match=r"parameters train in bfloat16 or.*trainer\.bf16=true"):
        warn_of_low_weights(model)
    warn_of_low_weights(
        model.requires_grad_(False)
    )  # nothing trains: nothing to say, and warnings are errors
    warn_of_low_weights(tiny_model())


def arguments(**values: Any) -> Any:
    plugin = values.pop("plugin", None)
    empty = {"bf16": False, "fp16": False, "deepspeed": None, "fsdp": None, "world_size": 1}
    return SimpleNamespace(**(empty | values), deepspeed_plugin=plugin)


BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("values", "expected", "copied"),
    [
        ({}, Precision(), False),
        ({"bf16": True}, Precision(autocast=BF16), False),
        ({"fp16": True, "world_size": 2}, Precision(autocast=torch.float16), False),
        ({"bf16": True, "deepspeed": "zero2.json"}, Precision(weights=BF16), True),
        ({"deepspeed": "zero2.json"}, Precision(), True),
        ({"bf16": True, "fsdp": "full_shard"}, Precision(weights=BF16, autocast=BF16), True),
        ({"fsdp": "full_shard"}, Precision(), False),
    ],
)
def test_what_each_wrapper_computes_in(values, expected, copied):
    assert computing_precision(arguments(**values)) == expected
    assert keeps_float32_copy(arguments(**values)) == copied


def test_a_deepspeed_file_decides_by_itself():
    plugin = SimpleNamespace(deepspeed_config={"bf16": {"enabled": True}, "fp16": {"enabled": "auto"}})
    assert computing_precision(arguments(deepspeed="file", plugin=plugin)) == Precision(weights=BF16)


def test_parameters_are_cast_and_buffers_are_not():
    """RoPE's frequencies rounded to bfloat16 would move positions: 0.36 nats over 1,700 tokens."""
    model = tiny_model()
    cast_parameters(model, BF16)
    assert {p.dtype for p in model.parameters()} == {BF16}
    assert {b.dtype for b in model.buffers() if b.is_floating_point()} == {torch.float32}
    cast_parameters(model, None)
    assert {p.dtype for p in model.parameters()} == {BF16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("precision")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 8)
    return folder


QUICK = {("zero3", "true")}


def launches() -> list[Any]:
    cells = [
        (form, bf16) for form in ("none", "ddp", "zero1", "zero2", "zero3") for bf16 in ("false", "true")
    ]
    return [pytest.param(*cell, marks=[] if cell in QUICK else [pytest.mark.slow]) for cell in cells]


@pytest.mark.parametrize(("form", "bf16"), launches())
def test_an_untrained_policy_has_no_margin(folder, form, bf16):
    """DPO through a launch as users start it: margin and rewards 0 to the last bit before the first step, loss ln 2."""
    output = folder / f"{form}-{bf16}"
    command = [sys.executable, "-m", "align.train"]
    if form != "none":
        if form.startswith("zero"):
            pytest.importorskip("deepspeed")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
        command += [str(CPU_FORMS / f"{form}.yaml"), "--main_process_port", "0", "-m", "align.train"]
    command += [
        *("method=dpo", f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}"),
        *(f"output={output}", "data.eval_size=4", "trainer.max_steps=1", "trainer.use_cpu=true"),
        *(f"trainer.bf16={bf16}", "trainer.gradient_accumulation_steps=1"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    before = json.loads((output / "results.json").read_text())["before"]
    for name in ("rewards/margins", "rewards/chosen", "rewards/rejected"):
        assert before[f"eval_{name}"] == 0.0, name
    assert before["eval_loss"] == pytest.approx(math.log(2), rel=1e-12)
