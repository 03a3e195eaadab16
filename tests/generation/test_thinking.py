"""Models that think: what they are asked, and what of their answers is read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from align.core.errors import UserError
from align.data.thinking import without_thinking
from align.generation.generators import Completion, Message, Request, Sampling, ScoredText
from align.generation.local import LocalSettings
from align.generation.prompts import PromptEncoder
from align.generation.server import OpenAISettings
from align.generation.spoken import decoded, spoken
from tests.data.helpers import END, START, byte_tokenizer
from tests.tiny import CHAT_TEMPLATE

# Qwen3's kind: a switch, and an empty block where thinking is off. QwQ's kind: the prompt opens the block.
SWITCHED = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
OPENING = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
QUESTION = (Message("user", "hi"),)
SAMPLING = Sampling(0.0, 1.0, 0, 8)
ASKED = f"{START}user\nhi{END}\n{START}assistant\n"


@pytest.mark.parametrize(
    ("text", "answer", "counts"),
    [
        ("Ada.", "Ada.", False),
        ("<think>\nSo.\n</think>\n\nAda.", "Ada.", True),
        ("\n<think>So.</think>Ada.", "Ada.", True),
        ("So.\n</think>\n\nAda.", "Ada.", True),
        ("<think>\n\n</think>\n\nAda.", "Ada.", False),
        ("<think>\nParagraph 1: so and", "", True),
        ("[THINK]So.[/THINK]Ada.", "Ada.", True),
        ("<|channel>thought\nSo.\n<channel|>Ada.", "Ada.", True),
        ("<|channel|>analysis<|message|>So.<|channel|>final<|message|>Ada.", "Ada.", True),
        ("Ada wrote `<think>` and </think>.", "Ada wrote `<think>` and </think>.", False),
    ],
)
def test_an_answer_is_read_without_its_thinking_block(text: str, answer: str, counts: bool) -> None:
    assert without_thinking(text) == (answer, counts)


def test_blocks_are_left_out_and_counted_in_a_line() -> None:
    told = io.StringIO()
    completions = [Completion("<think>x</think>1", 5, "stop"), Completion("2", 1, "stop")]
    read = spoken("plans", completions, Console(file=told, width=300))
    assert [one.text for one in read] == ["1", "2"] and [one.tokens for one in read] == [5, 1]
    assert told.getvalue().startswith("plans: 1 of 2 answers came with a thinking block")
    silent = io.StringIO()
    assert spoken("plans", completions[1:], Console(file=silent)) == completions[1:] and not silent.getvalue()


def test_tags_that_are_special_tokens_survive_decoding() -> None:
    tokenizer = byte_tokenizer(special=(START, "[THINK]", "[/THINK]"))
    ids = tokenizer(f"[THINK]So.[/THINK]Ada.{END}", add_special_tokens=False)["input_ids"]
    assert decoded(tokenizer, ids) == "[THINK]So.[/THINK]Ada."


def prompt(template: str, *, lead: str = "", **variables: object) -> str:
    tokenizer = byte_tokenizer(template)
    encode = PromptEncoder(tokenizer, variables)
    return str(tokenizer.decode(encode(Request("q", QUESTION, SAMPLING, 1, lead=lead))))


def test_a_model_is_asked_as_its_template_asks() -> None:
    """With the switch of `generator.template_kwargs`, and not with an empty block whatever it says."""
    assert prompt(SWITCHED) == ASKED
    assert prompt(SWITCHED, enable_thinking=False) == f"{ASKED}<think>\n\n</think>\n\n"
    assert prompt(OPENING) == f"{ASKED}<think>\n"


def test_the_lead_of_an_answer_never_stands_inside_a_thinking_block() -> None:
    assert prompt(OPENING, lead="Ada") == f"{ASKED}<think>\n\n</think>\n\nAda"
    assert prompt(CHAT_TEMPLATE, lead="Ada") == f"{ASKED}Ada"
    encode = PromptEncoder(byte_tokenizer(OPENING))
    assert encode.opening == "<think>\n" and PromptEncoder(byte_tokenizer()).opening == ""


def test_a_scored_text_stands_where_an_answer_without_reasoning_does() -> None:
    tokenizer = byte_tokenizer(OPENING)
    asked, answer = PromptEncoder(tokenizer).scored(ScoredText("s", QUESTION, "Ada"))
    assert tokenizer.decode(asked) == f"{ASKED}<think>\n\n</think>\n\n" and tokenizer.decode(answer) == "Ada"
    _, ended = PromptEncoder(tokenizer).scored(ScoredText("s", QUESTION, "Ada", end=True))
    assert ended.tolist() == np.append(answer, tokenizer.eos_token_id).tolist()


def test_a_server_is_sent_the_variables_of_its_template() -> None:
    settings = OpenAISettings(
        template_kwargs={"enable_thinking": False, "a": 1},
        extra_body={"top_k": 5, "chat_template_kwargs": {"a": 2}},
    )
    assert settings.body == {"top_k": 5, "chat_template_kwargs": {"enable_thinking": False, "a": 2}}
    assert OpenAISettings(extra_body={"top_k": 5}).body == {"top_k": 5}


def test_variables_that_a_rendering_sets_itself_are_refused() -> None:
    with pytest.raises(UserError, match=r"generator\.template_kwargs: messages cannot be set"):
        LocalSettings(template_kwargs={"messages": []}).check()
