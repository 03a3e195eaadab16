"""Runs of `align train adapter=soft_prompt`: gone on with, taken over by a second stage, exported, kept in a ball."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from align.adapters.soft_prompt import SoftPrompt
from align.models.soft_prompt import prompt_weights
from tests.forked import run
from tests.longseq.plain import assert_close
from tests.rows import make_rows
from tests.tiny import save_tiny

TOKENS = 3
COMMON = [
    *("trainer.optim=sgd", "trainer.learning_rate=0.5", "trainer.lr_scheduler_type=constant"),
    *("trainer.max_steps=4", "trainer.save_steps=2", "trainer.gradient_accumulation_steps=1"),
    *("trainer.use_cpu=true", "data.eval_size=3", "method=dpo", "positions=logo"),
    *("positions.target_length=4096", "adapter=soft_prompt", f"adapter.tokens={TOKENS}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("soft")
    save_tiny(folder / "model")
    make_rows(folder / "rows.jsonl", 11)
    return folder


def train(folder: Path, name: str, *overrides: str) -> dict[str, Any]:
    """Runs the command; the contents of results.json."""
    words = [f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}"]
    said = folder / f"{name}.log"
    code = run(["align", "train", *words, *COMMON, f"output={folder / name}", *overrides])
    assert code == [0], said.read_text()[-3000:]
    return dict(json.loads((folder / name / "results.json").read_text()))


def prompt(folder: Path) -> Tensor:
    (rows,) = load_file(folder / "model" / "adapter_model.safetensors").values()
    return rows


@pytest.fixture(scope="module")
def first(folder) -> dict[str, Any]:
    return train(folder, "first", f"reference.cache={folder / 'cache'}")


def started(folder: Path) -> Tensor:
    """The rows that a run begins with."""
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    return prompt_weights(SoftPrompt(tokens=TOKENS).add(model))[0].detach()


def test_only_the_prompt_trains_and_is_kept(folder, first) -> None:
    assert prompt(folder / "first").shape == (TOKENS, 64)
    assert not torch.allclose(prompt(folder / "first"), started(folder))
    said = (folder / "first.log").read_text()
    assert f"Each prompt begins with the {TOKENS} tokens of the soft prompt" in said
    assert "not proven" not in said


def test_the_reference_is_the_starting_models(folder, first) -> None:
    """Its rows have no prompt, so that a run of LoRA finds them in the cache, and nothing is read anew."""
    assert first["training"]["reference/tokens"] > 0
    live = train(folder, "live")
    for name in ("eval_loss", "eval_rewards/chosen", "eval_rewards/margins"):
        assert live["before"][name] == pytest.approx(first["before"][name], rel=1e-5)
        assert live["after"][name] == pytest.approx(first["after"][name], rel=1e-5)
    shared = [word for word in COMMON if not word.startswith(("adapter", "positions.target_length"))]
    words = [f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}", *shared]
    words += ["adapter=lora", f"positions.target_length={4096 - TOKENS}"]
    words += [f"reference.cache={folder / 'cache'}", f"output={folder / 'lora'}"]
    assert run(["align", "train", *words]) == [0], (folder / "lora.log").read_text()[-3000:]
    results = json.loads((folder / "lora" / "results.json").read_text())
    assert results["training"]["reference/tokens"] == 0


def test_it_goes_on_from_a_checkpoint(folder, first) -> None:
    whole = {"prompt": prompt(folder / "first")}
    shutil.copytree(folder / "first", folder / "again")
    for name in ("checkpoint-4", "model"):
        shutil.rmtree(folder / "again" / name)
    (folder / "again" / "results.json").unlink()
    train(folder, "again", f"reference.cache={folder / 'cache'}")
    assert "goes on" in (folder / "again.log").read_text()
    assert_close({"prompt": prompt(folder / "again")}, whole, tolerance=1e-6)


def test_a_second_stage_begins_where_the_first_one_ended(folder, first) -> None:
    """ProMoT: the model trains behind the prompt, and what is saved and exported is an ordinary model."""
    stage = [f"adapter.path={folder / 'first'}", "adapter.trains=base", "trainer.learning_rate=0.01"]
    results = train(folder, "second", *stage)
    for name in ("eval_loss", "eval_logps/chosen", "eval_rewards/margins"):
        assert results["before"][name] == pytest.approx(first["after"][name], rel=1e-4, abs=1e-5)
    saved = load_file(folder / "second" / "model" / "model.safetensors")
    assert saved.keys() == load_file(folder / "model" / "model.safetensors").keys()
    code = run(
        ["align", "export", f"path={folder / 'second'}", f"output={folder / 'exported'}"],
        log=folder / "export.log",
    )
    assert code == [0], (folder / "export.log").read_text()[-3000:]
    exported = load_file(folder / "exported" / "model.safetensors")
    assert all(torch.equal(exported[name], saved[name]) for name in saved)


def test_a_prompt_is_not_exported(folder, first) -> None:
    log = folder / "refused.log"
    (code,) = run(["align", "export", f"path={folder / 'first'}", f"output={folder / 'none'}"], log=log)
    assert code != 0
    assert "holds a soft prompt, which no ordinary model folder has a place for" in log.read_text()


def test_a_prompt_of_other_sizes_is_refused(folder, first) -> None:
    log = folder / "other.log"
    words = [f"model.path={folder / 'model'}", f"data.path={folder / 'rows.jsonl'}", *COMMON]
    words += [f"output={folder / 'other'}", f"adapter.path={folder / 'first'}", "adapter.tokens=7"]
    (code,) = run(["align", "train", *words], log=log)
    assert code != 0
    assert f"holds a prompt of {TOKENS} tokens: set adapter.tokens={TOKENS}" in log.read_text()


def test_rows_stay_in_their_ball(folder) -> None:
    """CPT: no row is farther from its start than the radius · √(64 / 2048), and steps as long as these reach it."""
    train(folder, "ball", "adapter.radius=0.1", "trainer.learning_rate=10")
    far = (prompt(folder / "ball") - started(folder)).norm(dim=1)
    most = 0.1 * (64 / 2048) ** 0.5
    assert far.max() <= most * (1 + 1e-5)
    assert far.min() >= most * (1 - 1e-5)
