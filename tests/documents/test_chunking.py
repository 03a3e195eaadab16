"""Chunks hold the whole document, stay within the budget, and end where the text allows."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from align.documents.chunking import cut_document
from align.documents.loading import Document
from tests.data.helpers import byte_tokenizer
from tests.tiny import tiny_tokenizer

BYTES = byte_tokenizer()


def cut(text, budget, tokenizer=BYTES):
    return cut_document(Document("d", "s", text), 3, tokenizer, chunk_tokens=budget)


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet=string.ascii_letters + ' .?!\n\t"é<|>', max_size=200),
    st.integers(min_value=2, max_value=40),
)
def test_chunks_are_the_document_in_order_within_the_budget(text, budget):
    """With one token a byte the budget is a number of bytes; the longest letter here has two of them."""
    chunks = cut(text, budget)
    assert "".join("".join(chunk.text.split()) for chunk in chunks) == "".join(text.split())
    for i, chunk in enumerate(chunks):
        assert text[chunk.start : chunk.start + len(chunk.text)] == chunk.text == chunk.text.strip() != ""
        assert len(chunk.text.encode()) <= chunk.tokens <= budget
        assert (chunk.index, chunk.id, chunk.order) == (i, f"d#{i}", (3, i))


def test_cuts_fall_at_paragraphs_then_sentences_then_lines():
    """Budget 12 words: the first two paragraphs fit together, the third needs its sentences, the last lines."""
    words = [f"w{i}" for i in range(8, 40)]
    text = "\n\n".join(
        [" ".join(words[:5]), " ".join(words[5:10]), f"{' '.join(words[:9])}. {' '.join(words[9:18])}."]
    )
    chunks = [chunk.text for chunk in cut(text, 14, tiny_tokenizer())]
    assert chunks == [
        text.split("\n\n" + " ".join(words[:9]) + ".")[0],
        " ".join(words[:9]) + ".",
        " ".join(words[9:18]) + ".",
    ]
    lines = f"{' '.join(words[:9])}\n{' '.join(words[9:18])}"
    assert [chunk.text for chunk in cut(lines, 12, tiny_tokenizer())] == lines.split("\n")


def test_what_has_no_borders_is_cut_at_tokens():
    assert [chunk.text for chunk in cut("x" * 25, 10)] == ["x" * 10, "x" * 10, "x" * 5]


def test_special_tokens_in_a_document_count_as_the_text_they_are():
    """`<|im_end|>` is ten bytes, not one token."""
    assert [chunk.tokens for chunk in cut("<|im_end|>", 16)] == [10]


def test_nothing_but_white_space_gives_no_chunk():
    assert cut(" \n\n ", 4) == []


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n"])
def test_paragraphs_are_found_whatever_ends_their_lines(end):
    """Three paragraphs of four words in two lines each, of 15 or 16 bytes, in chunks of 20."""
    text = f"{end}{end}".join(f"w{i} w{i + 1}{end}w{i + 2} w{i + 3}" for i in (10, 20, 30))
    chunks = cut(text, 20)
    assert [chunk.text.split() for chunk in chunks] == [[f"w{i + k}" for k in range(4)] for i in (10, 20, 30)]
