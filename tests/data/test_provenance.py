"""Leaks: prompts that lack what the chosen answer was made from."""

from __future__ import annotations

import pytest

from align.data.provenance import leaks

LOGO = {
    "context": ["one a", "two b", "three c"],
    "asked_of": "d#1",
    "chunks": [{"id": "d#0"}, {"id": "d#1"}, {"id": "e#4"}],
    "chosen_chunks": ["d#1"],
    "rejected_chunks": [["d#0"], ["d#1", "e#4"]],
    "rejected_kinds": ["irrelevant", "mixed"],
}
LONGPO = {
    "context": ["one\n\na", "two b"],
    "asked_of": ["d#1"],
    "chunks": [{"id": "d#0"}, {"id": "d#1"}],
    "short_prompts": ["two  b"],
}


@pytest.mark.parametrize(
    "row",
    [
        LOGO,
        LONGPO,
        {"context": "a b c", "question": "d?", "chosen": "e"},
        {"prompt": "a", "chosen": "b", "asked_of": "d#1"},
        {"context": "one\n\ntwo", "short_prompt": "Answer from this:\n\ntwo"},  # worded anew, not ours
    ],
)
def test_rows_that_hold_what_they_need(row):
    assert list(leaks(row)) == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (LOGO | {"asked_of": "d#7"}, "the chunk that was asked of (d#7) is not in the context"),
        (LOGO | {"chosen_chunks": ["d#0"]}, "the chosen answer was made without the chunk that was asked of"),
        (
            LOGO | {"rejected_chunks": [["d#1"], ["d#0"]]},
            "rejected answer 1 counts as made from irrelevant chunks, but saw d#1",
        ),
        (LOGO | {"context": ["one a"]}, "it describes 3 chunks, but its context has 1"),
        (
            LONGPO | {"short_prompts": ["two b\n\nsecret"]},
            "1 of 2 paragraphs of short context 1 are not in the context",
        ),
        (
            {"context": "one", "short_prompt": "secret"},
            "1 of 1 paragraphs of short context 1 are not in the context",
        ),
    ],
)
def test_leaks_are_told(row, sentence):
    assert sentence in list(leaks(row))


@pytest.mark.parametrize("value", [None, 1, [None], [[]], [{"id": "a"}], {"id": []}, "\ud800"])
def test_columns_of_other_types_are_no_traceback(value) -> None:
    """Somebody else's columns may have our names: what they hold is not of our making."""
    row = {
        "context": ["a"],
        "asked_of": "a",
        "chunks": [{"id": "a"}],
        "short_prompt": "a",
        "chosen_chunks": ["a"],
    }
    row |= {"rejected_chunks": [["b"]], "rejected_kinds": ["irrelevant"]}
    for name in row:
        assert all(isinstance(sentence, str) for sentence in leaks(row | {name: value}))
