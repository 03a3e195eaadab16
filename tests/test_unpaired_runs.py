"""`align train` over single answers with labels, and with a reference that follows: rows in, resumed, results out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import align
from align.core.errors import UserError
from tests.longseq.plain import assert_close
from tests.rows import words
from tests.tiny import save_tiny

STEPS = 4


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, initializer_range=0.1)
    return folder


def unpaired(count: int = 12) -> list[dict[str, Any]]:
    """TRL's layout, every third answer bad."""
    rng = np.random.default_rng(0)
    return [
        {"prompt": words(rng, 9), "completion": " " + words(rng, 4), "label": i % 3 > 0} for i in range(count)
    ]


def pairs(count: int = 12) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {"prompt": words(rng, 9), "chosen": " " + words(rng, 4), "rejected": " " + words(rng, 5)}
        for _ in range(count)
    ]


def train(folder: Path, model: Path, rows: list[dict[str, Any]], *overrides: str) -> Any:
    return align.train(
        f"model.path={model}",
        "adapter=none",
        f"trainer.max_steps={STEPS}",
        "trainer.save_steps=2",
        "trainer.per_device_train_batch_size=2",
        "trainer.gradient_accumulation_steps=2",
        "trainer.learning_rate=1e-2",
        "trainer.lr_scheduler_type=constant",
        "data.eval_size=3",
        f"output={folder}",
        *overrides,
        data=rows,
    )


def broken_off(whole: Path, target: Path) -> None:
    """The run's folder as a kill after two steps would have left it."""
    target.mkdir()
    for name in ("config.yaml", "before.json", "rows.json"):
        shutil.copy(whole / name, target)
    shutil.copytree(whole / "checkpoint-2", target / "checkpoint-2")


FOLLOWING = ("method=dpo", "reference.follow_steps=2", "reference.follow_alpha=0.5")


@pytest.mark.parametrize(
    ("rows", "overrides"),
    [
        (unpaired(), ("method=kto",)),
        (pairs(), ("method=kto",)),
        (unpaired(), ("method=bco",)),
        (pairs(), FOLLOWING),
    ],
    ids=["kto", "kto on pairs", "bco", "following"],
)
def test_a_run_and_its_second_half(
    rows: list[dict[str, Any]], overrides: tuple[str, ...], tmp_path: Path, model_folder: Path
) -> None:
    """The run lowers its loss on its own rows; killed after two steps it ends with the same weights."""
    train(tmp_path / "whole", model_folder, rows, *overrides)
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["before"]["eval_loss"] > 0 and np.isfinite(results["after"]["eval_loss"])
    broken_off(tmp_path / "whole", tmp_path / "broken")
    train(tmp_path / "broken", model_folder, rows, *overrides)
    ends = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken")]
    start = load_file(model_folder / "model.safetensors")
    assert_close(ends[1], ends[0], tolerance=1e-6)
    assert any((ends[0][name] != start[name]).any() for name in start)


def test_a_step_of_one_prompt_ends_before_a_model_loads(tmp_path: Path, model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "away")
    try:
        with pytest.raises(UserError, match=r"a step has one: raise trainer\.per_device_train_batch_size"):
            train(
                tmp_path / "run",
                model_folder,
                pairs(),
                "method=aot",
                "trainer.per_device_train_batch_size=1",
                "trainer.gradient_accumulation_steps=1",
            )
    finally:
        (model_folder / "away").rename(model_folder / "model.safetensors")
