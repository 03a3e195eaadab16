"""Answers of rows: their ends, what they bring beside their text, and which are not to be trained on."""

from __future__ import annotations

from typing import Any

import pytest

from align.data.examples import Example, TokenizedExample, Turn
from align.data.formats import parse_row
from align.data.settings import DataSettings
from align.data.sources import RawRow
from align.data.template import without_end
from align.data.tokens import ExampleTokenizer
from tests.data.helpers import END, byte_tokenizer

CALL = {"type": "function", "function": {"name": "weather", "arguments": {}}}


def parse(row: dict[str, Any]) -> Example:
    return parse_row(RawRow(0, "rows.jsonl:1", row)).example


def answer_texts(row: TokenizedExample) -> list[str]:
    return [byte_tokenizer().decode(answer.input_ids) for answer in row.answers]


def tokenize(example: Example, **settings: Any) -> TokenizedExample:
    return ExampleTokenizer(byte_tokenizer(), DataSettings(**settings), chunk_tokens=512)(example)


@pytest.mark.parametrize(
    ("text", "end", "kept"),
    [
        (f"yes{END}", END, "yes"),
        (f"yes{END}\n", END, "yes"),
        (f"yes{END} \n\n", END, "yes"),
        (f"yes{END}\n", f"{END}\n", "yes"),
        ("yes\n", END, "yes\n"),
        (f"{END} is a token", END, f"{END} is a token"),
        ("yes\n", "\n", "yes\n"),
        ("yes\n", "", "yes\n"),
    ],
)
def test_an_end_that_was_saved_with_an_answer_is_cut_off(text: str, end: str, kept: str) -> None:
    """White space behind it goes too, as files of model output have it."""
    assert without_end(text, end) == kept


@pytest.mark.parametrize("chat", ["auto", "never"])
def test_a_saved_end_is_not_trained_as_text(chat: str) -> None:
    row = {"prompt": [{"role": "user", "content": "p"}], "chosen": f"yes{END}\n", "rejected": f"no{END}"}
    assert answer_texts(tokenize(parse(row), chat=chat)) == [f"yes{END}", f"no{END}"]


def test_answers_over_a_context_keep_what_they_bring() -> None:
    """Reasoning and tool calls, as beside a prompt."""
    reasoned = {"role": "assistant", "content": "yes", "reasoning_content": "Hm."}
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    row = {"context": "c", "question": "q", "chosen": [reasoned], "rejected": [calling]}
    (turn,) = parse(row).turns
    fields = ({"reasoning_content": "Hm."}, {"tool_calls": [CALL]})
    assert turn == Turn("q", "yes", ("",), fields=fields)
    (turn,) = parse(row | {"rejected": ["no", reasoned]}).turns
    assert turn.rejected == ("no",) and turn.fields == ({"reasoning_content": "Hm."}, {})


def test_the_space_of_a_prompt_begins_the_first_answer_alone() -> None:
    turns = (Turn(None, "Blue", ("Red",)), Turn(" And?", "Green", ("Grey",)))
    row = tokenize(Example("r:1", turns, text="Answer: "))
    assert answer_texts(row) == [f" Blue{END} And?Green{END}", f" Red{END} And?Grey{END}"]
