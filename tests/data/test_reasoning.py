"""`data.thinking`: what is done about reasoning that answers bring, and about prompts that ask for some."""

from __future__ import annotations

import pytest

from align.core.errors import UserError
from tests.data.template_cases import (
    ASK,
    FORMS,
    PLAIN,
    QWQ,
    REASONED,
    USER,
    Form,
    as_text,
    reader,
    reader_of,
    row_under,
    tokenizer_of,
)


def test_answers_without_reasoning_are_refused_where_the_prompt_opens_a_block() -> None:
    with pytest.raises(UserError, match=r"^r:1: an answer without reasoning .* set data\.thinking=close"):
        row_under(QWQ, FORMS["plain"])


@pytest.mark.parametrize(("kind", "thinking"), [("plain", "close"), ("plain", "drop"), ("reasoned", "drop")])
def test_an_open_block_is_closed_at_once(kind: str, thinking: str) -> None:
    row = row_under(QWQ, FORMS[kind], thinking=thinking)
    assert row.prompt == f"{ASK}<think>\n\n</think>\n\n"
    assert row.answers == tuple(f"{text}<|im_end|>" for text in PLAIN)


def test_of_a_pair_the_answer_without_reasoning_closes_the_block_itself() -> None:
    row = row_under(QWQ, FORMS["mixed"], thinking="close")
    assert row.prompt == f"{ASK}<think>\n"
    assert row.answers == (f"{REASONED[0][8:]}<|im_end|>", f"\n</think>\n\n{PLAIN[1]}<|im_end|>")


def test_left_out_reasoning_is_counted() -> None:
    read_row = reader(tokenizer_of("qwen3"), thinking="drop")
    assert read_row(FORMS["mixed"].example()).dropped_reasoning == 1
    assert read_row(FORMS["plain"].example()).dropped_reasoning == 0
    assert read_row(FORMS["reasoned turns"].example()).dropped_reasoning == 1


@pytest.mark.parametrize(
    ("answers", "sentence"),
    [
        (("<think>\nHm.\n</think>\n\nYes.", "Yes."), "equals the chosen one"),
        (("<think>\nHm", "Yes."), "nothing is left of an answer"),
    ],
)
def test_rows_that_say_nothing_without_reasoning_are_refused(answers: tuple[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^r:1: .*{sentence}"):
        row_under(QWQ, Form("", [USER], [answers]), thinking="drop")


def test_an_answer_that_never_stops_thinking_is_kept_as_it_is() -> None:
    """A rejected answer that was cut: one opening tag, no closing one."""
    form = Form("", [USER], [(REASONED[0], "<think>\nHa and")])
    assert row_under(QWQ, form).answers[1] == "Ha and<|im_end|>"
    qwen = as_text(tokenizer_of("qwen3"), reader_of("qwen3")(form.example()))
    assert qwen.answers[1] == "<think>\nHa and<|im_end|>" and qwen.prompt == ASK


def test_the_settings_switch_wins_and_contradictions_are_refused() -> None:
    off = {"template_kwargs": {"enable_thinking": False}}
    tokenizer = tokenizer_of("qwen3")
    plain = as_text(tokenizer, reader(tokenizer, **off)(FORMS["plain"].example()))
    assert plain.prompt == f"{ASK}<think>\n\n</think>\n\n"
    with pytest.raises(UserError, match=r"thinking switched off: set data\.thinking=drop"):
        reader(tokenizer, **off)(FORMS["reasoned"].example())
