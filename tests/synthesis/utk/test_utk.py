"""`pipeline=utk`: what comes back of documents, how long rows are, and that equal seeds and kills give equal bytes."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from align.core.errors import UserError
from align.data.columns import Columns
from align.data.piece_rows import piece_row, read_pieces
from align.data.settings import DataSettings
from align.data.tokens import ExampleTokenizer
from align.documents.loading import Document
from align.generation.generators import Request, Sampling
from align.generation.nobody import Nobody
from align.generation.stage import Workspace
from align.synthesis.pipeline import Summary
from align.synthesis.row_log import RowLog
from align.synthesis.selection.select import ByLength
from align.synthesis.utk import UtkPipeline
from tests.data.helpers import byte_tokenizer
from tests.data.test_piece_rows import with_boundary
from tests.data.test_text_rows import with_start

MARKS = UtkPipeline().needed


def marked(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer.add_tokens(MARKS)
    return tokenizer


def documents(count: int = 40, letters: str = "abü世 .\n") -> list[Document]:
    """Texts of 1 to 160 letters, in which every tenth is long."""
    rng = random.Random(0)
    lengths = [rng.randrange(1, 40) if i % 10 else rng.randrange(100, 160) for i in range(count)]
    texts = ["".join(rng.choice(letters) for _ in range(n)) + "x"[: n % 2] for n in lengths]
    return [Document(f"d{i}", f"d{i}", text or "a") for i, text in enumerate(texts)]


def made(
    folder: Path, tokenizer: PreTrainedTokenizerFast, *, seed: int = 1, read=None, **settings
) -> Summary:
    pipeline = UtkPipeline(**{"row_tokens": 96, "min_split": 6} | settings)
    pipeline.check()
    work = Workspace(folder, seed, tokenizer, Nobody("tiny"), Console(file=io.StringIO()))
    return pipeline.run(documents() if read is None else read, work)


def rows(summary: Summary) -> list[dict]:
    return [json.loads(line) for line in summary.path.read_text().splitlines()]


def example(row: dict, tokenizer: PreTrainedTokenizerFast):
    """Its tokens and which are scored, as training reads them; the first is not predicted."""
    tokenize = ExampleTokenizer(tokenizer, DataSettings(), chunk_tokens=8)
    found = piece_row("a:1", read_pieces(Columns("a:1", row))[0], tokenize)
    ids = np.concatenate([found.prompt_ids, found.answers[0].input_ids])
    return ids.tolist(), [False, *found.answers[0].scored.tolist()]


def untied(row: dict, tokenizer: PreTrainedTokenizerFast) -> tuple[list[list[int]], int]:
    """Reads a knotted row back as one who knows the marks alone: each document's tokens, and the scored marks.

    A piece goes on with the first document that waits for that piece, so that this finds the documents only where each
    piece's label stands in its document's list, by which they are told apart.
    """
    number = {name: tokenizer.convert_tokens_to_ids(name) for name in MARKS}
    ids, scored = example(row, tokenizer)
    texts, labels, lists, at = {}, [], [], 0
    while at < len(ids):
        if ids[at] == number["<|label|>"]:
            end = ids.index(number["<|/label|>"], at)
            assert not any(scored[at : end + 1])
            labels.append(tuple(ids[at + 1 : end]))
            texts[labels[-1]], at = [], end + 1
        elif ids[at] == number["<|list|>"]:
            end = ids.index(number["<|/list|>"], at)
            assert not scored[at] and all(scored[at + 1 : end + 1])
            own: list[list[int]] = [[]]
            for one in ids[at + 1 : end]:
                own = [*own, []] if one == number["<|then|>"] else [*own[:-1], [*own[-1], one]]
            lists.append([tuple(label) for label in own])
            assert labels[-1] in lists[-1]  # it stands right behind the last of the document's pieces
            at = end + 1
        else:
            if ids[at] in number.values():
                assert not scored[at]
            elif labels:
                texts[labels[-1]].append(ids[at])
                assert scored[at]
            at += 1
    named = {label for own in lists for label in own}
    whole = [texts[label] for label in labels if label not in named]
    return [[one for label in own for one in texts[label]] for own in lists] + whole, len(lists)


@pytest.mark.parametrize("order", ["keep", "broken"])
@pytest.mark.parametrize("make", [byte_tokenizer, with_start, with_boundary])
def test_every_documents_tokens_come_back_in_order(make, order, tmp_path) -> None:
    """From the rows alone, also where a row's end cuts a document: all but those behind the last row, each once."""
    tokenizer = marked(make())
    summary = made(tmp_path, tokenizer, share=1.0, order=order)
    found: dict[str, list[int]] = {}
    for row in rows(summary):
        ids, scored = example(row, tokenizer)
        assert len(ids) == row["tokens"] <= 96 and sum(scored) > 0
        texts, lists = untied(row, tokenizer)
        assert lists == sum(own["pieces"] > 1 for own in row["documents"])
        waiting = list(texts)
        for own in row["documents"]:  # a row's texts are those of its documents, whatever their order in it
            document = next(one for one in documents() if one.id == own["id"])
            encoded = tokenizer(document.text, add_special_tokens=False, split_special_tokens=True)[
                "input_ids"
            ]
            expected = [*encoded, tokenizer.eos_token_id][own["start"] : own["stop"]]
            waiting.remove(expected)
            assert len(found.setdefault(own["id"], [])) == own["start"]
            found[own["id"]] += expected
        assert not waiting
    assert set(found) == {one.id for one in documents()}
    assert all(ids[-1] == tokenizer.eos_token_id for ids in found.values())
    assert sum(summary.dropped.values()) == 0


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_rows_are_full_and_counted(share, tmp_path) -> None:
    """A plain row has exactly its tokens, a knotted one all but fewer than a labelled document needs."""
    tokenizer = marked(with_start())
    summary = made(tmp_path, tokenizer, share=share)
    found = rows(summary)
    counts = summary.counts
    assert len(found) == summary.rows and sum(row["knotted"] for row in found) == int(
        share * len(found) + 1e-9
    )
    assert counts["tokens in rows"] == sum(row["tokens"] for row in found)
    scored = [sum(example(row, tokenizer)[1]) for row in found]
    assert counts["scored tokens"] == sum(scored)
    for row in found[:-1]:
        assert row["tokens"] == 96 if not row["knotted"] else 96 - row["tokens"] < 2 + 6 + 1
    for row in found:
        if not row["knotted"]:
            assert row["pieces"][0] == {"token": "<|im_start|>", "scored": False}
            assert all(piece["scored"] for piece in row["pieces"][1:])


def test_plain_packing_needs_no_marks_and_has_as_many_tokens(tmp_path) -> None:
    """`share=0` with a tokenizer that knows no mark: as many rows of as many tokens as asked for."""
    plain = made(tmp_path / "plain", byte_tokenizer(), share=0.0, rows=8)
    knotted = made(tmp_path / "knotted", marked(byte_tokenizer()), share=1.0, rows=8, backtrace=False)
    assert (plain.rows, plain.counts["tokens in rows"]) == (8, 8 * 96)
    assert knotted.rows == 8 and knotted.counts["tokens in rows"] >= 8 * (96 - 2)
    assert not any("<|label|>" in str(row["pieces"]) for row in rows(knotted))
    assert plain.dropped["document, or what is left of it, behind the last row"] > 0


def test_equal_seeds_give_equal_bytes_and_others_others(tmp_path) -> None:
    tokenizer = marked(byte_tokenizer())
    first, again, other = (
        made(tmp_path / name, tokenizer, seed=seed).path.read_bytes()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first == again != other


def test_a_killed_run_goes_on_behind_its_last_whole_row(tmp_path) -> None:
    """Killed within any row: the same bytes and counts as an unbroken run, and no row made twice."""
    tokenizer = marked(byte_tokenizer())
    whole = made(tmp_path / "whole", tokenizer)
    log = tmp_path / "whole" / "work" / "rows.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 5, len(lines) - 1, len(lines)):
        folder = tmp_path / f"killed-{kept}"
        (folder / "work").mkdir(parents=True)
        torn = lines[kept][:-9] if kept < len(lines) else b""
        (folder / "work" / "rows.jsonl").write_bytes(b"".join(lines[:kept]) + torn)
        again = made(folder, tokenizer)
        assert again.path.read_bytes() == whole.path.read_bytes()
        assert (again.rows, again.counts, again.dropped) == (whole.rows, whole.counts, whole.dropped)
        assert (folder / "work" / "rows.jsonl").read_bytes() == log.read_bytes()


def test_rows_of_another_tokenizer_are_not_gone_on_with(tmp_path) -> None:
    made(tmp_path, marked(byte_tokenizer()), rows=2)
    with pytest.raises(UserError, match=r"rows.jsonl:1 was made with another tokenizer .* resume=never"):
        made(tmp_path, marked(with_boundary()), rows=2)
    (tmp_path / "work" / "rows.jsonl").write_text('{"row": 1}\n')
    with pytest.raises(UserError, match=r"rows.jsonl:1 is no stored row"):
        RowLog(tmp_path / "work" / "rows.jsonl", maker="m")


def test_a_document_that_spells_a_mark_is_left_out_and_counted(tmp_path) -> None:
    read = [*documents(12), Document("bad", "bad", "so <|h_2|> it goes")]
    summary = made(tmp_path, marked(byte_tokenizer()), read=read)
    assert summary.dropped["document that spells one of the marks"] == 1
    assert not any(own["id"] == "bad" for row in rows(summary) for own in row["documents"])


def test_a_last_token_alone_is_no_row_and_is_counted(tmp_path) -> None:
    """95 letters and an end, then a document of one letter that leaves its end for a row of one token."""
    read = [Document("a", "a", "a" * 94), Document("b", "b", "b")]
    summary = made(tmp_path, byte_tokenizer(), read=read, share=0.0)
    assert (summary.rows, summary.counts["tokens in rows"]) == (1, 96)
    assert summary.dropped["tokens at the end, too few for a row"] == 1


def test_rows_of_pieces_are_selected_by_their_length(tmp_path) -> None:
    tokenizer = marked(byte_tokenizer())
    summary = made(tmp_path, tokenizer)
    work = Workspace(tmp_path, 1, tokenizer, Nobody("tiny"), Console(file=io.StringIO()))
    scores = ByLength(of="row").scores(summary.path, work)
    assert [score.value for score in scores] == [row["tokens"] for row in rows(summary)]
    with pytest.raises(RuntimeError, match="uses_generator = False has asked a model"):
        work.generator.generate([Request("a", (), Sampling(0.0, 1.0, 1, 1), 0)], finished=())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"order": "sorted"}, "pipeline.order=sorted"),
        ({"share": 1.5}, r"pipeline.share=1.5 must lie in \[0, 1\]"),
        ({"pieces": [0.5, 0.4]}, r"pipeline.pieces=\[0.5, 0.4\] must be the odds of 1, 2, 3"),
        ({"pieces": []}, "must be the odds"),
        ({"min_split": 2}, "pipeline.min_split=2 is too small: give 3 or more"),
        ({"rows": 0}, "pipeline.rows=0 is too small"),
        ({"head_mark": "<h>"}, r"pipeline.head_mark=<h> needs the place \{j\} once"),
        ({"tail_mark": "{j}{k}"}, r"pipeline.tail_mark=\{j\}\{k\} needs the place"),
        ({"label_marks": ["<l>"]}, "pipeline.label_marks=.* must name 2 tokens"),
        ({"list_marks": ["<l>", "<l>", "<m>"]}, "pipeline: two marks are <l>: give each a token of its own"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence) -> None:
    with pytest.raises(UserError, match=sentence):
        UtkPipeline(**settings).check()


def test_what_a_run_cannot_do_is_refused(tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"the tokenizer lacks <\|label\|>, .*model.extra_tokens='\[\"<\|label\|>\",.*'"
    ):
        made(tmp_path / "a", byte_tokenizer())
    with pytest.raises(
        UserError, match=r"pipeline.row_tokens=8 leaves no room for a document with its label"
    ):
        made(tmp_path / "b", marked(byte_tokenizer()), row_tokens=8, share=1.0)
