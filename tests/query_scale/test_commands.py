"""A query scale through the commands, one after the other, as a user types them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from align.query_scale.log_length import LogLength
from align.query_scale.scale import plain
from tests.test_export import run_command
from tests.tiny import save_tiny

TRAIN = [
    *(
        "method=dpo",
        "data.eval_size=2",
        "trainer.max_steps=2",
        "trainer.learning_rate=0.01",
        "trainer.use_cpu=true",
    ),
    *("model.dtype=float32", "model.rope.theta=1e6"),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The model's config.json has a query scale")
@pytest.mark.parametrize("adapter", [["adapter=lora", "adapter.r=4"], ["reference.source=frozen"]])
def test_train_export_evaluate_and_train_on(adapter, monkeypatch, capfd, tmp_path):
    """Margin 0 before the first step; refused by export until told; honoured by what reads the folder, untold."""
    rng = np.random.default_rng(0)

    def words(count: int) -> str:
        return " ".join(f"w{i}" for i in rng.integers(8, 128, count))

    rows = [json.dumps({"prompt": words(30), "chosen": words(6), "rejected": words(5)}) for _ in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    save_tiny(tmp_path / "base", num_hidden_layers=3, max_position_embeddings=16)
    common = [*TRAIN, f"data.path={tmp_path / 'rows.jsonl'}"]
    run, made = tmp_path / "run", tmp_path / "made"

    def answered(*arguments: str, expected: int = 0) -> str:
        code, _, err = run_command(monkeypatch, capfd, *arguments)
        assert code == expected, err
        return err

    first = [*common, "model/query_scale=log_length", *adapter]
    answered("train", *first, f"model.path={tmp_path / 'base'}", f"output={run}")
    assert json.loads((run / "results.json").read_text())["before"]["eval_rewards/margins"] == 0
    said = answered("export", f"path={run}", f"output={made}", expected=2)
    assert "max(1, ln(p + 1) / ln 16) in layers from 2 on" in said
    assert not made.exists()
    answered("export", f"path={run}", f"output={made}", "accept=[query_scale]")
    kept = plain(LogLength(window=16))
    assert json.loads((made / "config.json").read_text())["query_scale"] == kept
    answered(
        *("evaluate", "suite=preference", "method=simpo", f"model.path={made}", "model.rope.theta=1e6"),
        *(f"data.path={tmp_path / 'rows.jsonl'}", f"output={tmp_path / 'asked'}"),
    )
    answered("train", *common, f"model.path={made}", f"output={tmp_path / 'second'}")
    assert json.loads((tmp_path / "second" / "model" / "config.json").read_text())["query_scale"] == kept
