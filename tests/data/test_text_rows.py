"""Rows of plain text: pieces that hold every token once, held out whole, and what is refused or left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from align.core.errors import UserError
from align.data import faults
from align.data.dataset import PreferenceData, load_preference_data
from align.data.examples import TokenizedExample
from align.data.notices import notices
from align.data.settings import DataSettings, PositionSettings
from align.data.stored_rows import to_example
from align.data.text_rows import text_pieces
from align.data.tokens import ExampleTokenizer
from align.data.weighers import Spans
from align.longseq import pack
from tests.data.helpers import END, START, byte_tokenizer, write_lines

TEXT = "Grüße, 世界! \n\n  zwölf 🙂 Wörter\t"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def with_start() -> PreTrainedTokenizerFast:
    """The byte tokenizer with START before every text."""
    tokenizer = byte_tokenizer()
    number = tokenizer.convert_tokens_to_ids(START)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, number)]
    )
    return tokenizer


def without_end() -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    return tokenizer


def pieces(
    text: str, tokenizer: PreTrainedTokenizerFast, max_length: int | None = None, **settings
) -> list[TokenizedExample]:
    tokenize = ExampleTokenizer(tokenizer, DataSettings(max_length=max_length, **settings), chunk_tokens=512)
    return text_pieces("a.jsonl:1", text, tokenize)


def answers(found: list[TokenizedExample]) -> list[int]:
    """The predicted tokens of all pieces, one after the other."""
    return np.concatenate([one.answers[0].input_ids for one in found]).tolist()


def load(
    path: Path | str, *, tokenizer: PreTrainedTokenizerFast | None = None, options=None, **settings
) -> PreferenceData:
    return load_preference_data(
        DataSettings(path=str(path), **{"eval_size": 0} | settings),
        tokenizer or byte_tokenizer(),
        positions=PositionSettings(),
        seed=0,
        **(options or {}),
    )


@pytest.mark.parametrize("max_length", [None, 3, 5, 7, 8, 43, 44, 45, 400])
@pytest.mark.parametrize("make", [with_start, byte_tokenizer, without_end])
def test_every_token_is_predicted_once_and_none_is_lost(make, max_length) -> None:
    """Multi-byte characters fall apart at some of these lengths; the tokens come back as they were, none longer."""
    tokenizer = make()
    found = pieces(TEXT, tokenizer, max_length)
    whole = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    start = [] if make is not with_start else [tokenizer.convert_tokens_to_ids(START)]
    end = [] if tokenizer.eos_token is None else [tokenizer.eos_token_id]
    sequence = [*start, *whole, *end]
    assert found[0].prompt_ids.tolist() + answers(found) == sequence and len(found[0].prompt_ids) == 1
    assert tokenizer.decode(whole) == TEXT
    at = 1
    for one in found:
        if one.piece > 1:  # the beginning-of-text token, if there is one, and the token before
            assert one.prompt_ids.tolist() == [*start, sequence[at - 1]]
        assert one.answers[0].scored.all() and len(one.answers) == 1
        assert one.position_ids.tolist() == list(range(len(one.prompt_ids)))
        assert max_length is None or one.num_tokens <= max_length
        at += len(one.answers[0].input_ids)
    if max_length is not None:
        assert all(one.num_tokens == max_length for one in found[:-1])


def test_the_cut_that_the_docstring_shows() -> None:
    """`<s> a b c d e </s>` by 5: `<s> | a b c d` and `<s> d | e </s>`."""
    tokenizer = with_start()
    first, second = pieces("abcde", tokenizer, 5)
    shown = [tokenizer.convert_ids_to_tokens(ids) for ids in (first.prompt_ids, first.answers[0].input_ids)]
    assert shown == [[START], ["a", "b", "c", "d"]]
    shown = [tokenizer.convert_ids_to_tokens(ids) for ids in (second.prompt_ids, second.answers[0].input_ids)]
    assert shown == [[START, "d"], ["e", END]]
    assert [first.source, second.source] == ["a.jsonl:1 (piece 1 of 2)", "a.jsonl:1 (piece 2 of 2)"]
    assert first.document == second.document and (first.piece, second.piece) == (1, 2)
    assert pieces("abcde", tokenizer)[0].source == "a.jsonl:1"


def test_special_tokens_of_the_text_count_unless_chat_says_text() -> None:
    """TRL's rule of string prompts: rendered chats keep their markers; an end that is spelled is not put twice."""
    tokenizer = with_start()
    marker, end = tokenizer.convert_tokens_to_ids(START), tokenizer.eos_token_id
    (one,) = pieces(f"{START}user{END}", tokenizer)
    assert one.rendered and one.prompt_ids.tolist() == [marker]
    assert one.answers[0].input_ids.tolist()[-1] == end and answers([one]).count(end) == 1
    (plain,) = pieces(f"{START}user{END}", tokenizer, chat="always")
    assert not plain.rendered
    assert answers([plain]) == [
        *tokenizer(f"{START}user{END}", add_special_tokens=False, split_special_tokens=True)["input_ids"],
        end,
    ]


def test_a_stored_piece_is_read_back_and_its_prompt_is_never_scored() -> None:
    """Not by an NLL over the sequence either: the token before a piece was predicted by the one before."""
    from align.data.stored_rows import to_row

    for one in pieces(TEXT, with_start(), 9):
        again = to_example(to_row(one))
        assert (again.piece, again.document) == (one.piece, one.document)
        row = pack([again]).rows[0]
        assert row.context_length.tolist() == [0] and row.lengths.tolist() == [
            [len(one.answers[0].input_ids)]
        ]


# ---- files


@pytest.fixture
def books(tmp_path: Path) -> str:
    """Six documents of 100 bytes, of 101 tokens with the end: five pieces of at most 25."""
    return write_lines(tmp_path / "books.jsonl", *({"text": f"{i}" * 100, "url": "u"} for i in range(6)))


def test_documents_are_counted_and_told_in_one_line(books: str) -> None:
    data = load(books, max_length=25)
    assert (data.counts["documents"], data.counts["pieces"]) == (6, 30)
    assert data.counts["piece_tokens"] == data.counts["tokens"] == 6 * (101 + 4)
    told, unread = notices(data, window=None)
    assert told == (
        f"6 documents of plain text are read as 30 rows, 630 tokens together; each ends with {END}. 6 documents "
        "are cut into pieces by data.max_length, of which a later one begins with the last token of the one before."
    )
    assert unread == "Not read: url (30 rows)."
    (told, _) = notices(load(books, tokenizer=without_end(), max_length=100), window=None)
    assert (
        told == "6 documents of plain text are read whole, 600 tokens together; nothing is put behind them."
    )


def test_pieces_of_a_document_are_held_out_together(books: str) -> None:
    data = load(books, max_length=25, eval_size=7)
    assert data.eval is not None and len(data.eval) == 10
    held, trained = ({row["source"].split(" ")[0] for row in rows} for rows in (data.eval, data.train))
    assert len(held) == 2 and not held & trained
    with pytest.raises(
        UserError, match=r"holds out all there is, 5 rows of 1 prompt or document \(at least one"
    ):
        load(books, max_length=25, eval_size=0.1, limit=1)


def test_the_rows_do_not_depend_on_the_number_of_processes(books: str) -> None:
    one, three = (load(books, max_length=25, num_proc=n) for n in (1, 3))
    assert one.digest == three.digest and list(one.train["source"][:]) == list(three.train["source"][:])


def test_text_files_are_one_document_each(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")  # a byte-order mark is none of the text
    (folder / "more" / "b.txt").write_text("three")
    data = load(folder)
    assert list(data.train["source"][:]) == ["a.txt", "more/b.txt"]
    example = to_example(data.train[0])
    text = byte_tokenizer().decode([*example.prompt_ids, *example.answers[0].input_ids[:-1]])
    assert text == "one\r\ntwo\n"
    assert list(load(folder / "a.txt").train["source"][:]) == ["a.txt"]
    write_lines(folder / "rows.jsonl", {"text": "four"})  # beside rows the text files are notes about them
    assert list(load(folder).train["source"][:]) == ["rows.jsonl:1"]
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff")
    with pytest.raises(UserError, match=r"^bad\.txt: line 2 is no UTF-8 text \(byte 0xff\)"):
        load(tmp_path / "bad.txt")


def test_a_table_of_texts_and_other_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"content": ["one", "two"], "id": [1, 2]}), tmp_path / "rows.parquet")
    with pytest.raises(
        UserError, match=r"unknown layout .*the nearest is text: data\.columns=\{text: content\}"
    ):
        load(tmp_path / "rows.parquet")
    assert load(tmp_path / "rows.parquet", columns={"text": "content"}).counts["documents"] == 2


# ---- what cannot be read


@pytest.mark.parametrize(
    ("row", "reason", "sentence"),
    [
        ({"text": ""}, faults.EMPTY, "column text is empty"),
        ({"text": " \n"}, faults.EMPTY, "column text is empty"),
        ({"text": None}, faults.EMPTY, "column text is null"),
        ({"text": 7}, faults.WRONG_TYPE, "column text must be a string, not int"),
        ({"text": ["a"]}, faults.WRONG_TYPE, "column text must be a string, not list"),
        ({"text": "\ud800"}, faults.NOT_TEXT, "half of a surrogate pair"),
        ({"text": "t", "prompt": "p"}, faults.MISSING, "column chosen or completion is missing"),
        ({"text": "t", "images": ["i"]}, faults.NOT_TEXT, "column images is no text"),
    ],
)
def test_careless_rows_are_named_or_left_out(tmp_path: Path, row: dict, reason: str, sentence: str) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"text": "fine"}, row)
    with pytest.raises(UserError, match=rf"^rows\.jsonl:2: .*{sentence}"):
        load(path)
    data = load(path, bad_rows="drop", bad_rows_limit=None)
    assert [(bad.source, bad.reason) for bad in data.dropped] == [("rows.jsonl:2", reason)]


def test_one_token_is_predicted_only_behind_another(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"text": "a"})
    assert load(path).counts["tokens"] == 2  # the end is predicted
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: its text is one token, and nothing stands before it"
    ):
        load(path, tokenizer=without_end())
    assert len(pieces("a", with_start())[0].answers[0].input_ids) == 2


def test_a_length_that_holds_no_piece_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"data\.max_length=2 is too small for pieces of text: .*set 3 or more"
    ):
        pieces("abc", with_start(), 2)
    assert [len(one.answers[0].input_ids) for one in pieces("abc", byte_tokenizer(), 2)] == [1, 1, 1]


def test_methods_that_compare_refuse_a_document(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"text": "a document"})
    with pytest.raises(
        UserError, match=r"a row of text alone is a document, and preference methods compare answers"
    ):
        load(path, options={"require_rejected": True})


@pytest.mark.parametrize(
    "options", [{"columns": {"label": "label"}}, {"columns": {"a": "prompt"}}, {"unrelated": True}]
)
def test_methods_that_read_labels_or_numbers_refuse_a_document(tmp_path: Path, options: dict) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"text": "a document", "label": True, "a": 1.0})
    with pytest.raises(
        UserError, match=r"is a document, and the method reads a label or numbers of each answer"
    ):
        load(path, options=options)


def test_the_tokens_of_a_document_are_not_weighed(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "rows.jsonl", {"text": "a document"})
    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: the tokens of a document all weigh 1: set token_weights=none"
    ):
        load(path, options={"weigher": Spans()})


def test_rows_of_pairs_keep_their_layout_beside_a_text(tmp_path: Path) -> None:
    """Many data sets carry a rendered `text` beside their messages: it is named as not read, as before."""
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "text": "p a"}
    data = load(write_lines(tmp_path / "rows.jsonl", pair))
    assert data.counts["documents"] == 0 and notices(data, window=None)[-1] == "Not read: text (1 row)."
