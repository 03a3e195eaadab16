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
    V3_1,
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


# ---- how families write blocks, in miniature and in our own words

_CHAT = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}ANSWER{{ m.content + '<|im_end|>\n' }}{% endfor %}"
_OPENED = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
# A model is given a closed block unless thinking is wanted; answers are written without one (Gemma 4, llama.cpp's QwQ).
CLOSED = _CHAT.replace("ANSWER", "") + _OPENED + "<think>{{ '' if thinking else '</think>' }}{% endif %}"
# The last answer is written behind an opening tag, whatever it brings; the variable is no switch (Nemotron Nano 2).
TWICE = (
    "{% set ns = namespace(enable_thinking=true) %}"
    + _CHAT.replace("ANSWER", "{% if loop.last and m.role == 'assistant' %}{{ '<think>\n' }}{% endif %}")
    + _OPENED
    + "{% if ns.enable_thinking %}{{ '<think>\n' }}{% endif %}{% endif %}"
)
# Answers have a mark of their own, behind the block (Command R).
MARKED = CLOSED.replace("{{ m.content", "{{ '<|say|>' if m.role == 'assistant' }}{{ m.content")
SAID = MARKED.replace("<think>{{ '' if thinking else '</think>' }}", "{# <think> #}")
NATIVE = QWQ.replace("think>", "thought>")  # EXAONE Deep's tags


@pytest.mark.parametrize(
    ("source", "kind", "thinking", "prompt", "answers"),
    [
        (CLOSED, "plain", "keep", "<think></think>", PLAIN),
        (CLOSED, "reasoned", "keep", "<think>", [text[7:] for text in REASONED]),
        (CLOSED, "mixed", "keep", "<think>", (REASONED[0][7:], f"</think>{PLAIN[1]}")),
        (TWICE, "reasoned", "keep", "<think>\n", [text[8:] for text in REASONED]),
        (TWICE, "field", "keep", "<think>\n", [text[8:] for text in REASONED]),
        (TWICE, "plain", "close", "<think>\n\n</think>\n\n", PLAIN),
        (MARKED, "plain", "keep", "<think></think>", [f"<|say|>{text}" for text in PLAIN]),
        (MARKED, "field", "keep", "<think>", [t[7:].replace("\n\n", "\n\n<|say|>") for t in REASONED]),
        (NATIVE, "plain", "close", "<thought>\n\n</thought>\n\n", PLAIN),
        (NATIVE, "field", "keep", "<thought>\n", [text[8:].replace("think>", "thought>") for text in REASONED]),
    ],
)  # fmt: skip
def test_blocks_of_other_families(
    source: str, kind: str, thinking: str, prompt: str, answers: list[str]
) -> None:
    row = row_under(source, FORMS[kind], thinking=thinking)
    assert row.prompt == f"{ASK}{prompt}"
    assert row.answers == tuple(f"{text}<|im_end|>" for text in answers)


def test_a_closing_tag_that_the_template_writes_alone_is_not_written_twice() -> None:
    """DeepSeek-V3.1 with thinking on, and an answer that has none."""
    row = row_under(V3_1, FORMS["plain"], thinking="close", template_kwargs={"thinking": True})
    assert row.prompt == "<|user|>Why?<|assistant|><think></think>\n\n"
    assert row.answers == tuple(f"{text}<|im_end|>" for text in PLAIN)


def test_a_block_stays_open_where_a_variable_is_no_switch() -> None:
    with pytest.raises(UserError, match=r"would stand inside the thinking block"):
        row_under(TWICE, FORMS["plain"])


def test_tags_inside_another_block_are_no_reasoning() -> None:
    """With `<|say|>` before them they would be a part of what is said."""
    with pytest.raises(UserError, match=r"leaves out the reasoning .* set data\.thinking=drop"):
        row_under(SAID, FORMS["field"])
