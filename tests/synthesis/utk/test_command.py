"""From documents to a trained model by the commands: `align synthesize`, `align inspect`, `align train method=lm`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import align
from tests.data.helpers import byte_tokenizer
from tests.synthesis.utk.test_utk import MARKS
from tests.tiny import tiny_model

EXTRA = f"model.extra_tokens={json.dumps(MARKS)}"


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def save(folder: Path, *, weights: bool = True) -> Path:
    """A tiny model whose tokens are bytes; without its weights it is enough for a tokenizer."""
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), initializer_range=0.1)
    if weights:
        model.save_pretrained(folder)
    else:
        model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def documents(folder: Path) -> Path:
    """Ten documents, each of lines that are its own number again and again."""
    path = folder / "documents.jsonl"
    rows = [
        {"id": f"d{i}", "text": "".join(f"{i} says {i * j % 7}\n" for j in range(12 + i))} for i in range(10)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


PIPELINES = {
    "utk": ("pipeline=utk", "pipeline.row_tokens=256", "pipeline.min_split=32", EXTRA),
    "buckets": ("pipeline=buckets", "pipeline.min_power=4", "pipeline.max_power=6"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PIPELINES)
def test_documents_become_rows_that_a_model_learns(name, tmp_path, capsys) -> None:
    """No weights are there while rows are made; the card and inspection name them; the held-out loss falls."""
    own = PIPELINES[name]
    made = align.synthesize(
        *own,
        f"pipeline.documents={documents(tmp_path)}",
        f"model.path={save(tmp_path / 'bare', weights=False)}",
        "deduplicate=none",
        f"output={tmp_path / 'rows'}",
    )
    assert made.rows >= 5 and made.method == "lm"
    shown = capsys.readouterr().out
    assert (
        "align inspect require_rejected=false data.path=" in shown
        and "align train method=lm data.path=" in shown
    )
    card = (tmp_path / "rows" / "README.md").read_text()
    assert f"the tokenizer of {tmp_path / 'bare'} alone" in card and "| scored: tokens, least" in card
    assert (tmp_path / "rows" / "lengths.png").read_bytes().startswith(b"\x89PNG")

    model = save(tmp_path / "model")
    extra = [word for word in own if word.startswith("model.")]
    found = align.inspect(
        f"data.path={made.path}", f"model.path={model}", "require_rejected=false", "rows=1", *extra
    )
    assert not found.findings and found.counts["rows_of_pieces"] == made.rows
    assert found.counts["tokens_in_pieces"] == made.counts["tokens in rows"]
    assert "⟦" in capsys.readouterr().out
    result = align.train(
        "method=lm",
        *(["data/order=grow", "data.order.shortest=16"] if name == "buckets" else []),
        *(f"model.path={model}", "adapter=none", *extra),
        *("trainer.max_steps=10", "trainer.learning_rate=1e-2", "trainer.per_device_train_batch_size=2"),
        "trainer.gradient_accumulation_steps=1",
        *("data.tokens_per_row=300", "data.eval_size=0.2"),
        f"data.path={made.path}",
        f"output={tmp_path / 'run'}",
    )
    assert result.after["eval_loss"] < 0.8 * result.before["eval_loss"]
    align.plan(
        "method=lm", f"model.path={model}", f"data.path={made.path}", *extra, "gpus=h200", "gpus.count=1"
    )
    assert "tokens" in capsys.readouterr().out
