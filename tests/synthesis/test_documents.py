"""Documents from files, folders and CPython itself."""

from __future__ import annotations

import json

import pytest

from align.errors import UserError
from align.synthesis.documents import Document, fingerprint, load_documents


def test_the_embedded_documents_are_pythons_language_reference():
    documents = load_documents("embedded")
    assert len(documents) > 50
    assert "context manager" in next(document.text for document in documents if document.id == "with")


def test_a_folder_gives_its_files_in_order_with_ids_that_do_not_hold_its_place(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "sub" / "b.md").write_text("bee")
    (tmp_path / "a.txt").write_text("ay")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / ".hidden" / "x.txt").write_text("no")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    (tmp_path / "c.jsonl").write_text('{"text": "sea", "id": 7}\n\n{"text": "see"}\n')
    assert load_documents(str(tmp_path)) == [
        Document("a.txt", "a.txt", "ay"),
        Document("7", "c.jsonl:1", "sea"),
        Document("c.jsonl:3", "c.jsonl:3", "see"),
        Document("sub/b.md", "sub/b.md", "bee"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", '{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl:2.*text"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl:2"),
        ("a.jsonl", '{"text": "x", "id": 1}\n{"text": "y", "id": 1}\n', r"a\.jsonl:2.*id 1.*a\.jsonl:1"),
        ("a.jsonl", "", "empty"),
        ("a.txt", " \n", "no text"),
        ("a.txt", b"\xff\xfe\xff", "UTF-8"),
        ("a.exe", "x", "unknown ending"),
    ],
)
def test_bad_documents_are_named(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=sentence):
        load_documents(str(path))


def test_nothing_there_is_named(tmp_path):
    for path in (None, "", str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(UserError, match=r"pipeline\.documents"):
            load_documents(path)


def test_the_fingerprint_changes_with_any_text_or_border_between_texts():
    def of(*pairs):
        return fingerprint([Document(name, "s", text) for name, text in pairs])

    assert of(("a", "xy")) == of(("a", "xy"))
    assert (
        len({of(("a", "xy")), of(("a", "x"), ("", "y")), of(("ax", "y")), of(("a", json.dumps("xy")))}) == 4
    )
