"""Rows of pieces: which tokens are read and which are scored, what is refused, and how they are stored and shown."""

from __future__ import annotations

import io
import string
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from align.core.errors import UserError
from align.data import faults
from align.data.columns import Columns
from align.data.dataset import PreferenceData, load_preference_data
from align.data.display import print_row
from align.data.encoding import Encoder
from align.data.examples import TokenizedExample
from align.data.faults import RowError
from align.data.files import RawRow
from align.data.formats import parse_row
from align.data.notices import notices
from align.data.piece_rows import Piece, is_pieces, piece_of, piece_row, read_pieces
from align.data.settings import DataSettings, PositionSettings
from align.data.stored_rows import to_example, to_row
from align.data.tokens import ExampleTokenizer
from align.data.weighers import Spans
from align.longseq import pack
from tests.data.helpers import END, START, byte_tokenizer, write_lines


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def with_boundary() -> PreTrainedTokenizerFast:
    """As SentencePiece has it: a word and the space before it are one token, and a text begins with a space."""
    words = ["<unk>", "\n", "▁a", "▁b", "▁", END, *string.ascii_letters, *string.digits]
    tokenizer = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [("▁", "a"), ("▁", "b")], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, unk_token="<unk>")


def row(
    *pieces: object, tokenizer: PreTrainedTokenizerFast | None = None, **settings: object
) -> TokenizedExample:
    """The row of these pieces, as a file has them."""
    columns = Columns("a.jsonl:1", {"pieces": list(pieces)})
    tokenize = ExampleTokenizer(tokenizer or byte_tokenizer(), DataSettings(**settings), chunk_tokens=512)
    return piece_row("a.jsonl:1", read_pieces(columns)[0], tokenize)


def tokens(example: TokenizedExample) -> list[int]:
    return [*example.prompt_ids.tolist(), *example.answers[0].input_ids.tolist()]


def load(path: Path | str, **settings: object) -> PreferenceData:
    return load_preference_data(
        DataSettings(path=str(path), **{"eval_size": 0} | settings),
        byte_tokenizer(),
        positions=PositionSettings(),
        seed=0,
    )


def test_pieces_are_joined_as_tokens_and_scored_as_each_says() -> None:
    """`ab`, a mark that is read alone, an unscored `c`, and `de`: nothing is put before, between or behind them."""
    tokenizer = byte_tokenizer()
    found = row(
        {"text": "ab"}, {"token": START, "scored": False}, {"text": "c", "scored": False}, {"text": "de"}
    )
    shown = tokenizer.convert_ids_to_tokens(tokens(found))
    assert shown == ["a", "b", START, "c", "d", "e"]
    assert found.answers[0].scored.tolist() == [True, False, False, True, True]
    assert found.position_ids.tolist() == [0] and found.pieces == 4 and found.is_document
    (packed,) = pack([found]).rows
    assert packed.lengths.tolist() == [[3]] and packed.context_length.tolist() == [0]


def test_a_text_stays_text_and_a_token_is_one() -> None:
    """A document that spells a mark gets the ids of its letters, and a piece `token` the mark's."""
    tokenizer = byte_tokenizer()
    number = tokenizer.convert_tokens_to_ids(START)
    assert number not in tokens(row({"text": f"x{START}"}))
    assert tokens(row({"text": "x"}, {"token": START}))[1] == number


def test_ids_stand_as_they_are_and_are_held_against_their_text() -> None:
    """Half of `ü` is no text; its byte is a token, and reads as U+FFFD."""
    tokenizer = byte_tokenizer()
    half = tokenizer("ü")["input_ids"][:1]
    assert tokens(row({"text": "x"}, {"ids": half})) == tokens(row({"text": "x"}, {"ids": half, "text": "�"}))
    with pytest.raises(
        RowError, match=r"^a.jsonl:1: the ids of piece 2 read as '�' .* 'y' in the row"
    ) as refused:
        row({"text": "x"}, {"ids": half, "text": "y"})
    assert refused.value.reason == faults.VOCABULARY
    with pytest.raises(
        RowError, match="piece 2 has the id 100000, and the tokenizer ends at 257: name the model"
    ):
        row({"text": "x"}, {"ids": [100_000]})


@pytest.mark.parametrize(
    ("text", "make"), [("Grüße, 世界! \n\n zwölf 🙂\t", byte_tokenizer), ("a b  ab ba", with_boundary)]
)
def test_any_stretch_of_a_document_comes_back_by_its_very_tokens(text, make) -> None:
    """`piece_of` stores a text where this text gives the tokens, else ids: every stretch, first in its row or later."""
    tokenizer = make()
    encoder, ids = Encoder(tokenizer), np.asarray(tokenizer(text, add_special_tokens=False)["input_ids"])
    kinds = set()
    for start in range(len(ids)):
        for stop in range(start + 1, len(ids) + 1):
            first = piece_of(ids[start:stop], tokenizer, encoder, continues=False)
            later = piece_of(ids[start:stop], tokenizer, encoder, continues=True)
            kinds |= {first.ids is None, later.ids is None}
            found = row(first.as_json(), later.as_json(), tokenizer=tokenizer)
            assert tokens(found) == [*ids[start:stop], *ids[start:stop]]
    assert kinds == {True, False}


REFUSED = [
    ([], "column pieces must be a list of pieces, not list"),
    (["x"], "piece 1 is str: a piece has text, token or ids, and scored"),
    ([{"text": "a"}, {"scored": True}], "piece 2 has neither text nor token nor ids: give one"),
    ([{"text": "a", "token": START}], "piece 1 has text and token: give one of text, token and ids"),
    ([{"text": "a", "score": 1}], "piece 1 has the key 'score', which is not read"),
    ([{"text": "a", "scored": 1}], "piece 1: scored must be true or false, not int"),
    ([{"text": ""}], "piece 1: text is empty"),
    ([{"text": 7}], "piece 1: text must be a string, not int"),
    ([{"ids": [1, -1]}], "piece 1: ids must be a list of token ids, whole numbers from 0 on"),
    ([{"ids": [True]}], "piece 1: ids must be a list of token ids"),
    ([{"text": "a\ud800"}], "it is no text: character 2 of piece 1 is half of a surrogate pair"),
    (
        [{"text": "ab"}, {"token": "<|t_1|>"}],
        r"piece 2: the tokenizer lacks <\|t_1\|>: model.extra_tokens='\[\"<\|t_1\|>\"\]' adds that",
    ),
    ([{"text": "a"}], "no token of its pieces is predicted: none behind the first token is scored"),
    ([{"text": "a"}, {"text": "bc", "scored": False}], "no token of its pieces is predicted"),
]


@pytest.mark.parametrize(("pieces", "sentence"), REFUSED)
def test_what_is_no_row_of_pieces_is_refused_in_one_sentence(pieces, sentence) -> None:
    with pytest.raises(RowError, match=rf"^a.jsonl:1: {sentence}"):
        row(*pieces)


def test_a_row_is_refused_rather_than_cut() -> None:
    """Of 5 tokens: its parts may name each other, so that what is cut off would be missed elsewhere."""
    assert len(tokens(row({"text": "abcde"}, max_length=5))) == 5
    with pytest.raises(
        RowError, match=r"have 5 tokens and are not cut, .* more than data.max_length=4: raise it"
    ):
        row({"text": "abcde"}, max_length=4)


def test_what_asks_for_more_than_a_text_is_refused(tmp_path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"pieces": [{"text": "abc"}]})
    settings, tokenizer = DataSettings(path=path, eval_size=0), byte_tokenizer()
    for options, sentence in (
        ({"require_rejected": True}, "a row of pieces is a document, and preference methods compare answers"),
        ({"columns": {"label": "answer"}}, "a row of pieces is a document, and the method reads a label"),
        ({"weigher": Spans()}, "the tokens of a document all weigh 1: set token_weights=none"),
    ):
        with pytest.raises(UserError, match=sentence):
            load_preference_data(settings, tokenizer, positions=PositionSettings(), seed=0, **options)
    with pytest.raises(RowError, match="a row of pieces alone is a document without a prompt"):
        parse_row(RawRow(0, "a.jsonl:1", {"pieces": [{"text": "abc"}]}))


def test_a_column_pieces_beside_a_text_is_no_layout() -> None:
    assert not is_pieces({"pieces": 7, "text": "a document"})
    assert not is_pieces({"pieces": [], "prompt": "a", "completion": "b"})
    assert is_pieces({"pieces": [{"text": "a"}], "text": None})


def test_rows_are_stored_counted_and_held_out_by_document(tmp_path) -> None:
    """20 rows of 5 documents: the four of a document are on one side, whatever their first token."""
    rows = [
        {"document_id": f"d{i % 5}", "pieces": [{"text": "a", "scored": False}, {"text": f"b{i:02}"}]}
        for i in range(20)
    ]
    data = load(write_lines(tmp_path / "a.jsonl", *rows), eval_size=0.2)
    held = {int(one["source"].rpartition(":")[2]) % 5 for one in data.eval}
    trained = {int(one["source"].rpartition(":")[2]) % 5 for one in data.train}
    assert len(held) == 1 and len(data.eval) == 4 and not held & trained
    assert (data.counts["rows_of_pieces"], data.counts["tokens_in_pieces"], data.counts["documents"]) == (
        20,
        80,
        0,
    )
    said = notices(data, window=None)
    assert said[0].startswith("20 rows of pieces are read as laid out, 80 tokens together")
    assert not any("Not read" in sentence for sentence in said)
    found = to_example(data.train[0])
    assert to_row(found)["row_hash"] == data.train[0]["row_hash"]
    assert found.pieces == 2 and found.answers[0].scored.tolist() == [True, True, True]


def test_rows_without_a_document_are_told_apart_by_all_their_tokens(tmp_path) -> None:
    """Ten rows that begin alike: one of them is held out, not all."""
    rows = [{"pieces": [{"text": f"a{i}"}]} for i in range(10)]
    data = load(write_lines(tmp_path / "a.jsonl", *rows), eval_size=1)
    assert (len(data.train), len(data.eval)) == (9, 1)


def test_parquet_fills_the_kinds_that_a_piece_has_not_with_null(tmp_path) -> None:
    pieces = [{"text": "ab", "scored": True}, {"token": START, "scored": False}, {"ids": [3, 4]}]
    pq.write_table(pa.Table.from_pylist([{"pieces": pieces}]), tmp_path / "a.parquet")
    write_lines(tmp_path / "a.jsonl", {"pieces": pieces})
    stored = [load(tmp_path / name).train[0]["row_hash"] for name in ("a.parquet", "a.jsonl")]
    assert stored[0] == stored[1]


def test_a_row_is_shown_with_its_scored_stretches_and_many_are_counted() -> None:
    console = Console(file=io.StringIO(), width=400)
    pieces = [{"text": "x", "scored": False}]
    pieces += [{"text": letter, "scored": letter.isupper()} for letter in "aA" * 20]
    print_row(console, row(*pieces), byte_tokenizer(), characters=40)
    shown = console.file.getvalue()
    assert "41 pieces, 41 tokens, 20 of them scored" in shown
    assert "a⟦A⟧a⟦A⟧" in shown and " … 16 more stretches … " in shown and shown.count("⟦A⟧") == 12


def test_a_piece_is_written_as_it_is_read() -> None:
    for piece in (Piece(text="a"), Piece(token="b", scored=False), Piece(text="c", ids=(1, 2))):
        (again,), _ = read_pieces(Columns("a:1", {"pieces": [piece.as_json()]}))
        assert again == piece
