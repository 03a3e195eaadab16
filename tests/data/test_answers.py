"""Answers of rows: their ends, what they bring beside their text, and which are not to be trained on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from align.data import faults
from align.data.examples import Example, TokenizedExample, Turn
from align.data.faults import RowError
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


def asked(*answer: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "p"}, *answer]}


def said(text: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


@pytest.mark.parametrize("field", [{"weight": 0}, {"weight": 0.5}, {"training": False}, {"train": False}])
def test_an_answer_that_is_not_to_be_trained_on_is_refused(field: dict[str, Any]) -> None:
    """Wherever answers stand; in a prompt nothing is trained on anyway, and its template is not told."""
    (name,) = field
    for row in (
        asked(said("a", **field)),
        asked(said("a"), {"role": "user", "content": "q"}, said("b", **field)),
        {"prompt": "p", "chosen": [said("a")], "rejected": [said("b", **field)]},
        {"context": "c", "question": "q", "chosen": [said("a", **field)], "rejected": "b"},
    ):
        with pytest.raises(
            RowError, match=rf"has an answer that is not to be trained on \({name} is"
        ) as caught:
            parse(row)
        assert caught.value.reason == faults.BAD_LABEL
    history = [{"role": "user", "content": "p"}, said("a", **field), {"role": "user", "content": "q"}]
    assert parse({"prompt": history, "chosen": "b", "rejected": "c"}).messages[1] == said("a")


@pytest.mark.parametrize("weight", [1, 1.0, True, None])
def test_a_weight_of_one_says_nothing(weight: Any) -> None:
    assert parse(asked(said("a", weight=weight))).turns == (Turn(None, "a", ()),)


@pytest.mark.parametrize("content", [None, "Let me see."])
def test_a_function_call_is_a_tool_call(content: str | None) -> None:
    """OpenAI's older form."""
    call = {"name": "weather", "arguments": '{"city": "Rome"}'}
    (turn,) = parse(asked(said(content, function_call=call))).turns
    assert turn.chosen == (content or "")
    assert turn.fields == ({"tool_calls": [{"type": "function", "function": call}]},)
    with pytest.raises(RowError, match="has both function_call and tool_calls"):
        parse(asked(said(content, function_call=call, tool_calls=[CALL])))
    assert parse(asked(said("a", function_call={"name": None, "arguments": None}))).turns[0].fields == ()


def test_an_answer_that_is_json_is_text_beside_a_prompt_of_text() -> None:
    """Beside a conversation it is a message, as files have it that store conversations as JSON."""
    text = json.dumps(said("hi"))
    example = parse({"prompt": "Write a message as JSON.", "chosen": text, "rejected": "no"})
    assert example.text == "Write a message as JSON." and example.turns == (Turn(None, text, ("no",)),)
    over = parse({"context": "c", "question": "q", "chosen": text, "rejected": [text, "no"]})
    assert over.turns[0].chosen == text
    chat = parse(
        {"prompt": json.dumps([{"role": "user", "content": "p"}]), "chosen": text, "rejected": ["no"]}
    )
    assert chat.turns == (Turn(None, "hi", ("no",)),)
    whole = [{"role": "user", "content": "p"}, said("hi")]
    stored = {"prompt": "p", "chosen": json.dumps(whole), "rejected": json.dumps([*whole[:1], said("no")])}
    assert parse(stored).turns == (Turn(None, "hi", ("no",)),)
