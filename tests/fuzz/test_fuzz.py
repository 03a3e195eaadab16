"""A few drawn inputs of each kind, and all that were ever found. `make fuzz` draws thousands."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz import reading
from tests.fuzz.files import plain_pdf
from tests.fuzz.reading import FoundError, Place, drawn, tried

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.json"))
FEW = {"rows": "a", "documents": "quick", "questions": "e", "words": "quick"}  # the seed of each kind


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Inputs lie in a folder of their own, in which the working directory is too."""
    made = Place(tmp_path_factory.mktemp("fuzz"))
    made.furnish()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(made.work)
        yield made


def given_in(entry: dict[str, Any]) -> Any:
    """The input of a corpus entry."""
    if entry["kind"] == "words":
        return entry["command"], entry["words"]
    return entry["name"], base64.b64decode(entry["base64"]) if "base64" in entry else entry["text"].encode()


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_what_was_found_once_ends_in_its_sentence(path, place):
    """An empty sentence stands for a result."""
    entry = json.loads(path.read_text(encoding="utf-8"))
    said = tried(entry["kind"], given_in(entry), place)
    assert (said is None) if not entry["sentence"] else (said is not None and entry["sentence"] in said), said


@pytest.mark.parametrize("kind", FEW)
def test_a_few_drawn_inputs_end_in_a_sentence_or_a_result(kind, place):
    ends = [tried(kind, drawn(kind, f"{FEW[kind]}/{i}"), place) for i in range(10)]
    assert any(ends)


def test_a_seed_draws_the_same_inputs_again():
    for kind in reading.KINDS:
        assert [drawn(kind, f"{i}") for i in range(5)] == [drawn(kind, f"{i}") for i in range(5)]
        assert drawn(kind, "1") != drawn(kind, "2")


@pytest.mark.parametrize(
    ("harm", "found"),
    [
        (lambda place: (place.kept / "rows.jsonl").write_text("x"), "changed keep/rows.jsonl"),
        (lambda place: (place.work / "new").touch(), "changed a/b/work/new"),
        (lambda place: (place.inputs / "one" / "rows.jsonl").unlink(), "changed in/one/rows.jsonl"),
        (lambda place: {}["absent"], "KeyError: 'absent'"),
        (lambda place: print("\ud800"), "UnicodeEncodeError"),
        (lambda place: exec("while True: pass"), "took more than 1 s"),
    ],
)
def test_the_watch_sees_what_must_not_be(place, monkeypatch, harm, found):
    """Files that change, a traceback, text that no terminal takes, and what does not end."""
    monkeypatch.setitem(
        reading.READERS, "rows", (reading.READERS["rows"][0], lambda path, at: harm(at), "inspect")
    )
    rows = (place.kept / "rows.jsonl").read_bytes()
    try:
        with pytest.raises(FoundError, match=found):
            tried("rows", ("rows.jsonl", b"{}"), place, seconds=1)
    finally:
        (place.kept / "rows.jsonl").write_bytes(rows)
        (place.work / "new").unlink(missing_ok=True)


def test_the_hand_made_pdf_is_one(tmp_path):
    """So that what is done to it damages something."""
    pytest.importorskip("pypdf")
    from align.documents.archives import read_pdf

    (tmp_path / "a.pdf").write_bytes(plain_pdf("w8 w9", pages=2))
    assert read_pdf(tmp_path / "a.pdf") == ("w8 w9\n\nw8 w9", 0)
