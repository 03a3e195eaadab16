"""`align train method=lm`: documents beside rows with answers by share of tokens, resumed, and what it leaves."""

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

STEPS = 12


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny(folder, initializer_range=0.1)
    return folder


def documents() -> list[dict[str, Any]]:
    """Twelve texts that repeat eight words in one order, from 20 to 75 words long."""
    cycle = words(np.random.default_rng(0), 8)
    repeated = (" ".join([cycle] * 10)).split(" ")
    return [{"text": " ".join(repeated[: 20 + 5 * i])} for i in range(12)]


def chats(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    rows = [{"prompt": words(rng, 6), "completion": " " + words(rng, 3)} for _ in range(40)]
    path = folder / "chats.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def train(folder: Path, model: Path, *overrides: str) -> Any:
    return align.train(
        "method=lm",
        f"model.path={model}",
        "adapter=none",
        f"trainer.max_steps={STEPS}",
        f"trainer.save_steps={STEPS // 2}",
        "trainer.per_device_train_batch_size=4",
        "trainer.gradient_accumulation_steps=2",
        "trainer.learning_rate=1e-2",
        "trainer.lr_scheduler_type=cosine_with_min_lr",
        "trainer.lr_scheduler_kwargs={min_lr_rate: 0.1}",
        "data.max_length=24",
        "data.eval_size=4",
        f"output={folder}",
        *overrides,
        data=documents(),
    )


def test_text_mixed_by_share_lowers_the_held_out_loss_and_resumes(tmp_path, model_folder, capfd):
    """The held-out documents repeat the words of the others: from near chance to less than half of it."""
    mix = f"data.mix=[{{path: '{chats(tmp_path)}', share: 0.2}}]"
    result = train(tmp_path / "whole", model_folder, mix, "data.tokens_per_row=60")
    assert result.after["eval_loss"] < 0.5 * result.before["eval_loss"]
    said = " ".join(capfd.readouterr().err.split())
    assert (
        "12 documents of plain text are read as " in said and "are cut into pieces by data.max_length" in said
    )
    assert "Mixed by data.mix, shares of the " in said
    found = json.loads((tmp_path / "whole" / "results.json").read_text())
    base, chosen = found["mixture_tokens"].values()
    assert abs(chosen - 0.25 * base) <= 10 and list(found["mixture"].values())[1] == pytest.approx(
        chosen / 10, abs=1
    )
    target = tmp_path / "again"
    target.mkdir()
    for name in ("config.yaml", "before.json", "rows.json"):
        shutil.copy(tmp_path / "whole" / name, target)
    shutil.copytree(tmp_path / "whole" / f"checkpoint-{STEPS // 2}", target / f"checkpoint-{STEPS // 2}")
    train(target, model_folder, mix, "data.tokens_per_row=60")
    one, other = (
        load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", target)
    )
    assert_close(other, one, tolerance=1e-6)


def test_packing_and_batches_train_the_same(tmp_path, model_folder):
    """Every document alone in a row of its own against packs of 60 tokens and other micro-batches."""
    for name, overrides in {
        "packed": ("data.tokens_per_row=60",),
        "alone": ("trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=8"),
    }.items():
        train(tmp_path / name, model_folder, "trainer.optim=sgd", *overrides)
    one, other = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("packed", "alone"))
    assert_close(other, one, tolerance=1e-5)


def test_a_method_that_compares_ends_before_a_model_is_loaded(tmp_path, model_folder, monkeypatch):
    monkeypatch.setattr(
        "align.training.setup.load_causal_lm", lambda *_, **__: pytest.fail("a model was loaded")
    )
    with pytest.raises(
        UserError, match="a row of text alone is a document, and preference methods compare answers"
    ):
        train(tmp_path / "none", model_folder, "method=dpo")
