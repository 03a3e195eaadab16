"""A row that is too long is told in the words of who set the length: the user, or the model's window."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.core.errors import UserError
from align.data import faults
from align.data.faults import RowError
from align.data.length_words import in_window_words, rows_in_window_words, window_words
from align.data.settings import DataSettings, PositionSettings
from align.models.settings import ModelSettings
from align.training.methods import named_method
from align.training.preparation import read_rows_of_model
from tests.data.helpers import byte_tokenizer, write_lines
from tests.tiny import tiny_model

LONG = {"prompt": "p", "chosen": "y" * 300, "rejected": "n"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, r"more than the model's window of 200 tokens: leave the row out, or stretch the model"),
        ({"max_length": 100}, r"more than data\.max_length=100: raise it or leave the row out"),
        ({"bad_rows": "drop"}, r"200 tokens: leave the row out"),
    ],
)
def test_training_names_what_set_the_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict, said: str
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    tiny_model(max_position_embeddings=200, vocab_size=258).config.save_pretrained(tmp_path / "model")
    path = write_lines(tmp_path / "rows.jsonl", LONG, LONG | {"chosen": "y"}, LONG | {"chosen": "z"})
    read = DataSettings(path=path, eval_size=0, **{"bad_rows_limit": 0.5} | settings)
    model = ModelSettings(path=str(tmp_path / "model"))

    def rows() -> None:
        data = read_rows_of_model(
            named_method("dpo"), read, byte_tokenizer(), model=model, positions=PositionSettings(), seed=0
        )
        raise data.dropped[0]

    with pytest.raises(UserError, match=said):
        rows()


def test_other_sentences_stay() -> None:
    """Another length, another sentence, no window."""
    sentence = "more than data.max_length=20: raise it or leave the row out."
    assert in_window_words(sentence, None) == in_window_words(sentence, 2) == sentence
    assert "window of 20 tokens: leave the row out" in in_window_words(sentence, 20)
    (row,) = rows_in_window_words([RowError("r:1", sentence, reason=faults.TOO_LONG)], 20)
    assert str(row).startswith("r:1: more than the model's window") and row.reason == faults.TOO_LONG
    with pytest.raises(UserError, match=r"^rows\.jsonl: 1 of 1 .*window of 20 tokens"), window_words(20):
        raise UserError(f"rows.jsonl: 1 of 1 cannot be used; the first is r:1: {sentence}")
