"""Rows under chat templates: prompt and answers are the template's own, whatever it does about thinking or ends.

template_cases.py has the templates that TRL installs and the kinds of rows; templates of other families stand below,
each in miniature and in our own words.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from align.data.thinking import tags_of
from tests.data.template_cases import (
    FORMS,
    NAMES,
    PLAIN,
    REFUSED,
    Form,
    Row,
    as_text,
    outcome,
    page,
    reader_of,
    tokenizer_of,
    written,
)

PAGE = Path(__file__).parents[2] / "docs" / "templates.md"

# Rows that a template cannot hold, by form; everything else must be read.
OPENING = {
    name for name in NAMES if name.startswith("deepseek")
}  # the prompt opens a block, history has none
NO_FIELD = (
    "cohere", "gemma", "lfm2_training", "lfm2_v2", "llama3", "phi3", "qwen2_5", "qwen3_instruct", "qwen3_vl",
)  # fmt: skip
KEEPING = ("muse_glimmer", "qwen3_8", "qwen3_training", "qwen3_5_nothink_training", "qwen3_5_think_training",
           "qwen3_6_training")  # fmt: skip
REFUSALS = {
    "system": OPENING | {"gemma", "gemma_training"},
    "field": {n for n in NAMES if n == "lfm2" or (n.startswith(NO_FIELD) and n != "gemma4_v5")},
    # A template that leaves out the reasoning of earlier answers; Gemma 4 at first wrote none at all.
    "reasoned turns": OPENING
    | {
        name
        for name in NAMES
        if tags_of(str(tokenizer_of(name).chat_template)) and not name.startswith((*KEEPING, "gemma4"))
    }
    | {"gemma4_v5", "gptoss", "gptoss_training"},
} | dict.fromkeys(("plain", "empty system", "mixed", "turns", "history"), OPENING)


@cache
def read(name: str, kind: str) -> Row:
    return as_text(tokenizer_of(name), reader_of(name)(FORMS[kind].example()))


def tail(row: Row, chat: list[dict[str, Any]]) -> str:
    """What the prompt has behind its last content."""
    return row.prompt[row.prompt.rindex(str(chat[-1]["content"])) + len(str(chat[-1]["content"])) :]


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_what_the_template_writes(name: str) -> None:
    """`outcome` compares with what transformers writes for the conversation; only the listed rows are refused."""
    for kind in FORMS:
        assert (outcome(name, kind) == REFUSED) == (name in REFUSALS.get(kind, ())), kind


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_has_one_thinking_block_and_is_never_inside_an_open_one(name: str) -> None:
    """Counted over the prompt's end and the scored answer."""
    known = tags_of(str(tokenizer_of(name).chat_template))
    for kind, form in FORMS.items():
        if name in REFUSALS.get(kind, ()):
            continue
        row = read(name, kind)
        for branch, runs in enumerate(row.scored):
            text = tail(row, form.conversation(branch)[: len(form.prompt)]) + runs[0]
            said = PLAIN[branch] if kind != "history" else form.answers[0][branch]
            for opening, closing in known:
                counts = text.count(opening), text.count(closing)
                # Tags that the template does not know are text in the answer.
                reasons = any(word in runs[0] for word in ("Hm.", "Ha.")) and (
                    closing == "</think>" or "</think>" not in runs[0]
                )
                assert counts in ([(1, 1)] if reasons else [(0, 0), (1, 1)]), (kind, text)
                assert text.rfind(opening) <= text.rfind(closing) < text.index(said), (kind, text)
                for run in runs[1:]:
                    assert opening not in run and closing not in run, kind


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_is_what_a_model_is_given_to_answer(name: str) -> None:
    """With thinking switched as the row implies; of one answer with reasoning and one without, what both share."""
    tokenizer = tokenizer_of(name)
    for kind, form in FORMS.items():
        if name in REFUSALS.get(kind, ()) or form.later:
            continue
        given, on, off = (
            written(tokenizer, form.prompt, add_generation_prompt=True, **variables)
            for variables in ({}, {"enable_thinking": True}, {"enable_thinking": False})
        )
        reasons = "</think>" in form.answers[0][1] or form.fields is not None
        prompt = read(name, kind).prompt
        if kind == "mixed":
            # Nemotron's two prompts part behind the opening tag, the others' behind the line break after it.
            assert given.startswith(prompt) or on.startswith(prompt)
            assert prompt == given or off.startswith(prompt)
        elif reasons and tags_of(str(tokenizer.chat_template)):
            assert prompt in (given, on), kind
        else:
            assert prompt in (given, off), kind


def test_the_page_says_what_the_code_does() -> None:
    assert PAGE.read_text() == page()
