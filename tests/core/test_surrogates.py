"""Halves of surrogate pairs: what JSON spells and no text holds."""

from __future__ import annotations

import pytest

from align.core.errors import AlignWarning
from align.core.surrogates import whole_text
from align.documents.loading import load_documents


def test_halves_are_replaced_and_counted():
    assert whole_text("a\ud83d b\ude00") == ("a\ufffd b\ufffd", 2)
    assert whole_text("a\U0001f600") == ("a\U0001f600", 0)


def test_a_document_is_text(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"text": "a\\ud83d \\ud83d\\ude00"}\n')
    with pytest.warns(AlignWarning, match="a document holds halves of surrogate pairs"):
        (document,) = load_documents(str(tmp_path / "d.jsonl"))
    assert document.text == "a\ufffd \U0001f600"
