"""Documents from files, folders and CPython itself."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import re
import tracemalloc
import zipfile

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from rich.console import Console

from align.core.errors import UserError
from align.documents.archives import Room, unpacked
from align.documents.duplicates import Removed, check_duplicates, remove_duplicates
from align.documents.lengths import histogram, show_documents
from align.documents.loading import Document, fingerprint, load_documents
from align.documents.shingles import NearCopies, Within, _sketch, shingles, split_words

needs_data = pytest.mark.skipif("ALIGN_DATA" not in os.environ, reason="ALIGN_DATA is not set")


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


def pdf(*pages):
    """A PDF with one line of text a page, written by hand."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET" if text else ""
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    content, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, start=1):
        places.append(len(content))
        content += f"{number} 0 obj\n{text}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    end = f"xref\n0 {len(places) + 1}\n0000000000 65535 f \n{table}trailer\n"
    root = f"<< /Size {len(places) + 1} /Root 1 0 R >>\nstartxref\n{len(content)}\n%%EOF\n"
    return content + (end + root).encode()


def test_a_pdf_gives_the_text_of_its_pages(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf("First page.", "Second page."))
    assert load_documents(str(tmp_path / "a.pdf")) == [
        Document("a.pdf", "a.pdf", "First page.\n\nSecond page.")
    ]
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    with pytest.raises(UserError, match="no text"):
        load_documents(str(tmp_path / "scan.pdf"))
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.4 nothing")
    with pytest.raises(UserError, match=r"bad\.pdf cannot be read as PDF"):
        load_documents(str(tmp_path / "bad.pdf"))


def test_without_pypdf_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.pdf").write_bytes(pdf("x"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"long-preference\[pdf\]"):
        load_documents(str(tmp_path / "a.pdf"))


def test_a_zip_is_read_like_its_folder_under_its_own_name_and_nothing_leaves_it(tmp_path):
    inner = tmp_path / "b.zip"
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub/one.txt", "one")
        archive.writestr("rows.jsonl", '{"text": "two"}\n')
        archive.writestr("../../evil.txt", "evil")
        archive.writestr("picture.png", b"\x89")
        with zipfile.ZipFile(inner, "w") as other:
            other.writestr("three.md", "three")
        archive.write(inner, "inner.zip")
    inner.unlink()
    found = {document.id: document.text for document in load_documents(str(tmp_path / "a.zip"))}
    assert found == {
        "a.zip/evil.txt": "evil",
        "a.zip/inner.zip/three.md": "three",
        "a.zip/rows.jsonl:1": "two",
        "a.zip/sub/one.txt": "one",
    }
    assert not list(tmp_path.parent.glob("evil.txt"))
    assert len(load_documents(str(tmp_path))) == 4
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(UserError, match=r"bad\.zip cannot be unpacked"):
        load_documents(str(tmp_path / "bad.zip"))


def test_a_zip_within_itself_and_zips_that_are_large_together_are_refused(tmp_path):
    inner = b"text"
    for level in range(6):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("next.zip" if level else "end.txt", inner)
        inner = stream.getvalue()
    (tmp_path / "a.zip").write_bytes(inner)
    with pytest.raises(UserError, match=r"a\.zip(/next\.zip){4} lies in 4 archives in each other"):
        load_documents(str(tmp_path / "a.zip"))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("b.txt", "b" * 60)
    room = Room(left=100)
    with unpacked(tmp_path / "b.zip", room):
        assert (room.left, room.depth) == (40, 1)
    assert room.depth == 0
    too_large = pytest.raises(UserError, match=r"b\.zip unpacks to 0\.0 GiB, where 0\.0 of the 8 GiB")
    with too_large, unpacked(tmp_path / "b.zip", room):
        pass


def test_what_gives_no_document_is_said(tmp_path, capfd):
    """By kind and number; where nothing is left the refusal says it."""
    for name in ("a.html", "b.html", "c"):
        (tmp_path / name).write_text("<p>text</p>")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "scan.pdf").write_bytes(pdf(""))
    left = (
        "left out: 3 files with other endings (none 1, .html 2), 2 files without text (empty.txt, scan.pdf; scanned "
        "pages need text recognition)"
    )
    with pytest.raises(UserError, match=re.escape(f"holds no text ({left}).")):
        load_documents(str(tmp_path))
    (tmp_path / "d.jsonl").write_text('{"text": "sea"}\n{"text": " "}\n')
    assert len(load_documents(str(tmp_path), key="suite.documents")) == 1
    assert f"suite.documents={tmp_path}: {left}, 1 row without text.\n" in capfd.readouterr().err
    (tmp_path / "f.pdf").write_bytes(pdf("First page.", "", ""))
    load_documents(str(tmp_path / "f.pdf"))
    assert f"{tmp_path / 'f.pdf'}: left out: 2 pages of PDFs without text.\n" in capfd.readouterr().err
    (tmp_path / "e.txt").write_text("whole")
    load_documents(str(tmp_path / "e.txt"))
    assert capfd.readouterr().err == ""


def test_parquet_and_saved_data_sets_give_a_document_a_row(tmp_path):
    rows = Dataset.from_dict({"text": ["one", "two"]})
    rows.to_parquet(tmp_path / "a.parquet")
    assert [document.text for document in load_documents(str(tmp_path / "a.parquet"))] == ["one", "two"]
    DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "saved")
    assert [(d.id, d.text) for d in load_documents(str(tmp_path / "saved"))] == [
        ("saved/train:1", "one"),
        ("saved/train:2", "two"),
        ("saved/test:1", "one"),
        ("saved/test:2", "two"),
    ]


@needs_data
def test_the_speeches_of_the_data_folder_are_read_from_their_zip():
    path = f"{os.environ['ALIGN_DATA']}/documents/state_union.zip"
    documents = load_documents(path)
    assert len(documents) == 65 and all(len(document.text) > 1000 for document in documents)
    kept, removed = remove_duplicates(documents, kind="near", threshold=0.8)
    assert len(kept) == 65 and removed == []


def test_rows_without_a_name_are_named_by_their_place(tmp_path):
    lines = ['{"text": "one", "id": null}', '{"text": "two", "id": null}', '{"text": "three", "id": ""}']
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, '{"text": "four", "id": 0}']))
    names = [document.id for document in load_documents(str(tmp_path / "a.jsonl"))]
    assert names == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "0"]


def test_marks_of_byte_order_and_ends_of_lines_make_no_difference(tmp_path):
    """The same two paragraphs from Windows, as text and as rows."""
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\ntwo".encode())
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": "\ufeffone\r\n\r\ntwo"}), encoding="utf-8-sig")
    assert [document.text for document in load_documents(str(tmp_path))] == ["one\n\ntwo"] * 2


@pytest.mark.parametrize(
    "failure", ["NotImplementedError", "DependencyError", "AttributeError", "RecursionError"]
)
def test_whatever_a_pdf_makes_its_reader_raise_is_one_sentence(tmp_path, monkeypatch, failure):
    import builtins

    import pypdf
    import pypdf.errors

    (tmp_path / "a.pdf").write_bytes(pdf("x"))
    kind = getattr(builtins, failure, None) or getattr(pypdf.errors, failure)

    def extract(page):
        raise kind("unsupported\nfilter")

    monkeypatch.setattr(pypdf.PageObject, "extract_text", extract)
    with pytest.raises(UserError, match=r"a\.pdf cannot be read as PDF \(unsupported filter\): convert it"):
        load_documents(str(tmp_path / "a.pdf"))


def test_mutated_pdfs_and_zips_give_text_or_one_sentence(tmp_path):
    """120 mutations of each, seeded; a traceback would fail the test."""
    rng = random.Random(7)
    whole = {"a.pdf": pdf("First page.", "Second page.")}
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.txt", "one " * 200)
        archive.writestr("rows.jsonl", '{"text": "two"}\n')
    whole["b.zip"] = (tmp_path / "b.zip").read_bytes()
    for name, content in whole.items():
        for _ in range(120):
            spoilt = bytearray(content)
            for _ in range(rng.randint(1, 6)):
                spoilt[rng.randrange(len(spoilt))] = rng.randrange(256)
            (tmp_path / name).write_bytes(
                bytes(spoilt[: rng.randint(1, len(spoilt))] if rng.random() < 0.3 else spoilt)
            )
            said = complaint(tmp_path / name)
            assert "\n" not in said and "align-zip-" not in said


def complaint(path) -> str:
    try:
        load_documents(str(path))
    except UserError as error:
        return str(error)
    return ""


def test_a_complaint_about_a_file_in_a_zip_names_it_under_the_zips_own_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("sub/one.txt", b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"^a\.zip/sub/one\.txt is not UTF-8"):
        load_documents(str(tmp_path / "a.zip"))


@pytest.mark.parametrize("seed", range(3))
def test_near_copies_are_those_of_all_pairs_compared_word_by_word(seed):
    """60 texts, mutations of ten: what is left out, and like what, as sets of five-word tuples say."""
    rng = random.Random(seed)
    roots = [[f"w{rng.randrange(50)}" for _ in range(80)] for _ in range(10)]
    texts = []
    for _ in range(60):
        words = list(rng.choice(roots))
        for _ in range(rng.randrange(4)):
            words[rng.randrange(80)] = f"x{rng.randrange(50)}"
        texts.append(" ".join(words))
    documents = named(*texts)
    kept, removed = remove_duplicates(documents, kind="near", threshold=0.8)

    def tuples(text):
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    stay: list[Document] = []
    for document in documents:
        own = tuples(document.text)
        if all(len(own & tuples(o.text)) / len(own | tuples(o.text)) < 0.8 for o in stay):
            stay.append(document)
    assert kept == stay
    by_id = {document.id: document for document in documents}
    for item in removed:
        own, other = tuples(item.document.text), tuples(by_id[item.like].text)
        assert item.similarity == pytest.approx(len(own & other) / len(own | other))


def test_near_copies_hold_no_words_of_what_is_kept():
    """A text's sketch and its places in the index take 8 KB, however long it is; 4,000 hashes alone would take 32."""
    rng = random.Random(1)
    documents = named(*(" ".join(f"w{rng.randrange(3000)}" for _ in range(4000)) for _ in range(25)))
    near = NearCopies(0.8)
    for document in documents[:5]:
        near.add(document, split_words(document.text))  # after these, hardly a word is new
    tracemalloc.start()
    for document in documents[5:]:
        near.add(document, split_words(document.text))
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 20 * 14_000


def test_boilerplate_makes_no_documents_to_compare():
    """Half of every document is the same: candidates of each other, which their sketches tell apart."""
    rng = random.Random(2)
    shared = " ".join(f"s{i}" for i in range(400))
    near = NearCopies(0.8)
    for document in named(
        *(f"{shared} {' '.join(str(rng.random()) for _ in range(200))}" for _ in range(40))
    ):
        assert near.add(document, split_words(document.text)) is None
    assert len(near.index.query(_sketch(shingles(split_words(near.kept[0].text))))) > 20
    assert len(near._known.arrays) < 4


def test_shingles_are_kept_within_a_budget():
    """Three arrays of 80 bytes in 200: what was asked for longest ago goes."""
    known = Within(200)
    for place in range(2):
        known.put(place, np.zeros(10))
    assert known.get(0) is not None
    known.put(2, np.zeros(10))
    assert (list(known.arrays), known.held, known.get(1)) == ([0, 2], 160, None)


def named(*texts):
    return [Document(f"d{i}", "s", text) for i, text in enumerate(texts)]


def test_exact_and_near_copies_are_left_out_and_the_first_stays():
    """40 words; another last word changes one of 36 shingles on each side: 35 / 37 = 0.946."""
    words = [f"word{i}" for i in range(40)]
    base, near, far = " ".join(words), " ".join([*words[:-1], "other"]), " ".join(words[:20])
    documents = named(base, f"{base.upper()} \n", near, far, "short", "short text")
    kept, removed = remove_duplicates(documents, kind="near", threshold=0.9)
    assert [document.id for document in kept] == ["d0", "d3", "d4", "d5"]
    assert [(item.document.id, item.like, item.kind) for item in removed] == [
        ("d1", "d0", "exact"),
        ("d2", "d0", "near"),
    ]
    assert removed[1].similarity == pytest.approx(35 / 37)
    assert [d.id for d in remove_duplicates(documents, kind="near", threshold=0.95)[0]][:2] == ["d0", "d2"]
    assert len(remove_duplicates(documents, kind="exact", threshold=0.8)[0]) == 5
    assert remove_duplicates(documents, kind="none", threshold=0.8) == (documents, [])


@pytest.mark.parametrize(("kind", "threshold"), [("some", 0.8), ("near", 0.0), ("near", 1.5)])
def test_bad_settings_of_duplicates_are_named(kind, threshold):
    with pytest.raises(UserError, match=r"deduplicate|near_duplicate"):
        check_duplicates(kind, threshold)


def test_the_histogram_counts_every_document_once_between_powers_of_two():
    assert histogram([1, 2, 3, 9, 15, 16]) == [(0, 2, 1), (2, 4, 2), (4, 8, 0), (8, 16, 2), (16, 32, 1)]
    assert histogram([]) == []
    console = Console(file=io.StringIO(), width=100)
    copies = [Removed(Document("d", "s", "x"), "e", kind, 1.0) for kind in ("exact", "near", "near")]
    show_documents([5, 6, 20], copies, console)
    shown = console.file.getvalue()
    assert "3 documents, 31 tokens; left out: 1 exact and 2 near duplicates" in shown
    assert "4 – 7" in shown and "16 – 31" in shown
