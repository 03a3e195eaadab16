"""Columns that would be read past are refused in a sentence, or reach the place that they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.core.errors import UserError
from align.data import faults
from align.data.dataset import load_preference_data
from align.data.examples import Example, Turn
from align.data.faults import RowError
from align.data.formats import parse_row
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import RawRow
from tests.data.helpers import byte_tokenizer, write_lines
from tests.data.template_cases import as_text, reader
from tests.tiny import CHAT_TEMPLATE

PAIR = {"chosen": "a", "rejected": "b"}
USER = {"role": "user", "content": "p"}
SYSTEM = {"role": "system", "content": "Be brief."}


def parse(row: dict[str, Any]) -> Example:
    return parse_row(RawRow(0, "rows.jsonl:1", row)).example


def chat(answer: str, prompt: str = "p") -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"prompt": [SYSTEM, USER], "system": "Be long.", **PAIR},
            "column system differs from the system message",
        ),
        (
            {"instruction": "<|im_start|>user", "history": [["q", "a"]], **PAIR},
            "column history beside an instruction with a chat template's markers is not read",
        ),
        (
            {"prompt": "another", "chosen": chat("a"), "rejected": chat("b")},
            "column prompt is no message of the conversation in chosen",
        ),
        (
            {"messages": chat("a"), "rejected": "b"},
            "column rejected stands beside messages without a column chosen",
        ),
        (
            {"conversations": chat("a"), "rejected": [chat("b")[1]]},
            "column rejected stands beside conversations without a column chosen",
        ),
    ],
)
def test_what_would_be_read_past_is_refused(row: dict[str, Any], sentence: str) -> None:
    with pytest.raises(RowError, match=f"^rows.jsonl:1: {sentence}"):
        parse(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [SYSTEM, USER], "system": "Be brief. ", **PAIR},
        {"instruction": "<|im_start|>user", "history": [], **PAIR},
        {"prompt": "p ", "chosen": chat("a"), "rejected": chat("b")},
        {"messages": chat("a"), "rejected": ""},
        {"messages": chat("a"), "rejected": []},
    ],
)
def test_what_says_the_same_or_nothing_is_no_fault(row: dict[str, Any]) -> None:
    assert parse(row).turns[0].chosen == "a"


HALF = "\ud800"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [*chat("a"), {"role": "tool", "content": HALF}, {"role": "assistant", "content": "b"}]},
        {"messages": [USER, {"role": "assistant", "content": "a", "reasoning_content": HALF}]},
        {"messages": chat("a"), "tools": [{"name": "f", "description": HALF}]},
        {"prompt": [USER, {"role": "tool", "content": "x", "name": HALF}, USER], **PAIR},
        {"prompt": [USER], "chat_template_kwargs": {"note": HALF}, **PAIR},
    ],
)
def test_half_a_surrogate_is_found_wherever_it_stands(row: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="half of a surrogate pair") as caught:
        parse(row)
    assert caught.value.reason == faults.NOT_TEXT


# ---- chat_template_kwargs


def prompt_under(variables: Any, **settings: Any) -> str:
    """The prompt p under a template that begins with its variable `note`."""
    tokenizer = byte_tokenizer("{{ note or '' }}" + CHAT_TEMPLATE)
    row = {"prompt": [USER], "chat_template_kwargs": variables, **PAIR}
    return as_text(tokenizer, reader(tokenizer, **settings)(parse(row))).prompt


def test_a_rows_own_variables_reach_the_template_over_the_settings() -> None:
    plain = prompt_under(None)
    assert prompt_under({"note": "hm"}) == f"hm{plain}"
    assert prompt_under('{"note": "hm"}') == f"hm{plain}"  # as a table has it
    assert prompt_under({"note": None, "other": 1}) == plain  # as Arrow fills merged schemas
    assert prompt_under({"other": 1}, template_kwargs={"note": "ho"}) == f"ho{plain}"
    assert prompt_under({"note": "hm"}, template_kwargs={"note": "ho"}) == f"hm{plain}"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"messages": []}, "column chat_template_kwargs: messages cannot be set"),
        ("enable", "column chat_template_kwargs is text, and no JSON"),
        ([1], "column chat_template_kwargs must be an object"),
    ],
)
def test_variables_that_no_template_can_have_are_refused(variables: Any, sentence: str) -> None:
    with pytest.raises(RowError, match=f"^rows.jsonl:1: {sentence}"):
        parse({"prompt": [USER], "chat_template_kwargs": variables, **PAIR})


def test_variables_without_a_template_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    path = write_lines(tmp_path / "rows.jsonl", {"prompt": "p", "chat_template_kwargs": {"a": 1}, **PAIR})

    def load(**settings: Any) -> Any:
        settings = {"eval_size": 0, "path": path, **settings}
        return load_preference_data(
            DataSettings(**settings), byte_tokenizer(), positions=PositionSettings(), seed=0
        )

    with pytest.raises(
        UserError, match=r"rows\.jsonl:1: column chat_template_kwargs is not read where no chat"
    ):
        load()
    for settings in ({"chat": "always"}, {"columns": {"chat_template_kwargs": None}}):
        assert len(load(**settings).train) == 1


def test_turns_and_variables_are_parsed() -> None:
    example = parse({"prompt": [USER], "chat_template_kwargs": {"a": 1, "b": None}, **PAIR})
    assert example.template_kwargs == {"a": 1} and example.turns == (Turn(None, "a", ("b",)),)
