"""Rows under chat templates: prompt and answers are the template's own, whatever it does about thinking or ends.

template_cases.py has the templates that TRL installs and the kinds of rows; templates of other families stand below,
each in miniature and in our own words.
"""

from __future__ import annotations

from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.core.errors import UserError
from align.data.build import cache_key
from align.data.dataset import PreferenceData, load_preference_data, to_example
from align.data.notices import notices
from align.data.settings import DataSettings, PositionSettings
from align.data.sources import open_sources
from align.data.thinking import tags_of
from tests.data.helpers import END, START, byte_tokenizer, write_lines
from tests.data.template_cases import (
    ASK,
    FLAGGED,
    FOLDED,
    FORMS,
    MAGISTRAL,
    NAMES,
    PLAIN,
    QWQ,
    REASONED,
    REFUSED,
    THINKING_2507,
    USER,
    V3_1,
    Form,
    Row,
    as_text,
    outcome,
    page,
    reader,
    reader_of,
    row_under,
    tokenizer_of,
    tokenizer_with,
    written,
)
from tests.tiny import CHAT_TEMPLATE

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


@pytest.mark.parametrize(
    ("source", "kind", "prompt", "answers"),
    [
        (QWQ, "reasoned", f"{ASK}<think>\n", [f"{text[8:]}<|im_end|>" for text in REASONED]),
        (QWQ, "output", f"{ASK}<think>\n", [f"{text[8:]}<|im_end|>" for text in REASONED]),
        (QWQ, "field", f"{ASK}<think>\n", [f"{text[8:]}<|im_end|>" for text in REASONED]),
        (THINKING_2507, "reasoned", f"{ASK}<think>\n", [f"{text[8:]}<|im_end|>" for text in REASONED]),
        (THINKING_2507, "plain", f"{ASK}<think>\n\n</think>\n\n", [f"{text}<|im_end|>" for text in PLAIN]),
        (
            THINKING_2507,
            "mixed",
            f"{ASK}<think>\n",
            [f"{REASONED[0][8:]}<|im_end|>", f"\n</think>\n\n{PLAIN[1]}<|im_end|>"],
        ),
        (V3_1, "plain", "<|user|>Why?<|assistant|></think>", [f"{text}<|im_end|>" for text in PLAIN]),
        (
            V3_1,
            "reasoned",
            "<|user|>Why?<|assistant|><think>",
            [f"{text[7:]}<|im_end|>" for text in REASONED],
        ),
        (FOLDED, "system", "[INST] Be brief.\n\nWhy? [/INST]", [f" {text} </s>" for text in PLAIN]),
        (MAGISTRAL, "plain", "<|bos|>[INST]Why?[/INST]", [f"{text}</s>" for text in PLAIN]),
    ],
)
def test_other_families(source: str, kind: str, prompt: str, answers: list[str]) -> None:
    row = row_under(source, FORMS[kind])
    assert (row.prompt, row.answers) == (prompt, tuple(answers))


def test_tags_that_are_special_tokens_are_the_templates_own_around_reasoning() -> None:
    """Magistral: two special tokens around the reasoning, none where a text only mentions them."""
    tokenizer = byte_tokenizer(MAGISTRAL, special=("[THINK]", "[/THINK]", "[INST]", "[/INST]"), end="</s>")
    form = Form("", [USER], [("[THINK]Hm.[/THINK]Because.", "Because [THINK] and [/THINK] are tags.")])
    chosen, rejected = reader(tokenizer)(form.example()).answers
    special = tokenizer.convert_tokens_to_ids(["[THINK]", "[/THINK]"])
    assert np.isin(chosen.input_ids, special).sum() == 2
    assert np.isin(rejected.input_ids, special).sum() == 0
    assert tokenizer.decode(chosen.input_ids) == "[THINK]Hm.[/THINK]Because.</s>"


def test_a_word_in_a_system_message_may_be_a_switch() -> None:
    form = Form("", [{"role": "system", "content": "Be brief. /no_think"}, USER], [PLAIN])
    assert row_under(FLAGGED, form).prompt == f"<|im_start|>system\nBe brief.<|im_end|>\n{ASK}"


# ---- files and dates


def test_a_template_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.chat_template=.* cannot be read"):
        reader(tokenizer_of("qwen3"), chat_template=str(tmp_path / "no.jinja"))
    path = tmp_path / "bad.jinja"
    path.write_text("{% for %}")
    with pytest.raises(UserError, match=r"data\.chat_template: line 1 is no Jinja"):
        reader(tokenizer_of("qwen3"), chat_template=str(path))


def test_a_file_takes_the_place_of_the_tokenizers_template(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(CHAT_TEMPLATE.replace("<|im_start|>", "<|im_start|>{{ name }} "))
    tokenizer = tokenizer_with(CHAT_TEMPLATE)
    for chat in ("auto", "always"):
        own = reader(tokenizer, chat_template=str(path), template_kwargs={"name": "Bo"}, chat=chat)
        assert tokenizer.decode(own(FORMS["plain"].example()).prompt_ids) == ASK.replace(START, f"{START}Bo ")


DATED = CHAT_TEMPLATE.replace("{% for", "{{ strftime_now('%d %b %Y') }}{% for", 1)


def test_the_date_is_that_of_the_settings_in_every_row() -> None:
    tokenizer = tokenizer_with(DATED)
    row = as_text(tokenizer, reader(tokenizer, date="2024-02-29")(FORMS["turns"].example()))
    assert row.prompt.startswith("29 Feb 2024<|im_start|>")
    with pytest.raises(UserError, match=r"data\.date=tomorrow is no date"):
        reader(tokenizer, date="tomorrow")


def says(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def load(tokenizer: Any, path: Path, **data: Any) -> PreferenceData:
    settings = DataSettings(**({"path": str(path), "eval_size": 0} | data))
    return load_preference_data(settings, tokenizer, positions=PositionSettings(), seed=0)


def test_the_date_is_frozen_for_a_command_and_part_of_the_key(tmp_path: Path) -> None:
    """Rows of another day are other rows; without a date in the template the day does not matter."""
    path = tmp_path / "rows.jsonl"
    write_lines(path, {"prompt": [USER], "chosen": [says(PLAIN[0])], "rejected": [says(PLAIN[1])]})

    def key(source: str, day: str | None) -> str:
        sources = open_sources(str(path)).train
        settings = DataSettings(path=str(path), date=day)
        return cache_key(
            sources,
            settings,
            tokenizer_with(source),
            positions=PositionSettings(),
            seed=0,
        )

    assert key(DATED, "2024-02-29") != key(DATED, "2024-03-01")
    assert key(DATED, None) == key(DATED, str(date.today()))
    assert key(CHAT_TEMPLATE, "2024-02-29") == key(CHAT_TEMPLATE, None)
    tokenizer = tokenizer_with(DATED)
    data = load(tokenizer, path, date="2024-02-29")
    assert tokenizer.decode(data.train[0]["prompt_ids"]).startswith("29 Feb 2024")
    (said,) = notices(data, window=None)
    assert "data.date=2024-02-29" in said


def test_what_is_left_out_of_rows_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    later = {"role": "user", "content": "And then?"}
    write_lines(path, {"prompt": [USER], "chosen": [says(REASONED[0]), later], "rejected": [says(PLAIN[1])]})
    data = load(tokenizer_of("qwen3"), path, thinking="drop")
    assert notices(data, window=None) == [
        "The reasoning of 1 answer was left out (data.thinking=drop).",
        "Left out behind the last answers of rows, where nobody answers: 1 message.",
    ]
    assert (data.counts["dropped_reasoning"], data.counts["dropped_messages"]) == (1, 1)
    stored = to_example(data.train[0])
    assert (stored.dropped_reasoning, stored.dropped_messages) == (1, 1)


class Counting(type(byte_tokenizer())):  # type: ignore[misc]
    """Counts what it renders."""

    rendered = 0

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        type(self).rendered += 1
        return super().apply_chat_template(*args, **kwargs)


def test_a_row_costs_a_few_renderings_however_many_turns_it_has() -> None:
    counts = []
    for turns in (2, 100):
        tokenizer = byte_tokenizer()
        tokenizer.__class__ = Counting
        form = Form("", [USER], [PLAIN] * turns, ["And then?"] * (turns - 1))
        read_row = reader(tokenizer)
        read_row(form.example())
        Counting.rendered = 0
        answers = read_row(form.example()).answers
        counts.append(Counting.rendered)
        text = tokenizer.decode(answers[0].input_ids)
        assert text.count(f"Because.{END}") == turns and text.count(f"{START}user") == turns - 1
    assert counts[0] == counts[1] <= 8
