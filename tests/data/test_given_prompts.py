"""Prompts that a template writes otherwise as soon as an answer follows: rows have what a model is given."""

from __future__ import annotations

import pytest

from align.core.errors import UserError
from align.data.template import text_message
from tests.data.template_cases import FORMS, REASONED, Form, reader, row_under, tokenizer_with
from tests.tiny import CHAT_TEMPLATE

SYSTEM_LAST = (  # the system message is a part of the last question, if that is the last message (Mistral Nemo)
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST]' + (s if loop.last and s is defined else '') + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
)
LAST_KEEPS = (  # of the last answer alone the reasoning is kept (LFM2.5)
    "{% set last = namespace(at=-1) %}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% set last.at = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content if loop.index0 == last.at else m.content.split('</think>')[-1].lstrip() }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
ASKED_TO_THINK = CHAT_TEMPLATE.replace(  # the question asks for reasoning where an answer is wanted (Jamba Reasoning)
    "message['content'] }}",
    "('Think first. ' if add_generation_prompt and message['role'] == 'user' else '') + message['content'] }}",
)
SECOND_COPY = (  # the system message stands before every message (a template for embeddings)
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}{% for m in messages %}"
    "{% if m.role != 'system' and (loop.last or not s) %}{{ '<|im_start|>' + s + ' ' + m.content + '<|im_end|>' }}"
    "{% elif m.role != 'system' %}{{ '<|im_start|>' + m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "kind", "prompt", "answers"),
    [
        (SYSTEM_LAST, "system", "[INST]Be brief.\n\nWhy?[/INST]", ("Because.</s>", "The dog.</s>")),
        (
            LAST_KEEPS,
            "history",
            f"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{REASONED[0]}<|im_end|>\n"
            "<|im_start|>user\nAnd then?<|im_end|>\n<|im_start|>assistant\n",
            ("No.<|im_end|>", "Yes.<|im_end|>"),
        ),
        (
            ASKED_TO_THINK,
            "plain",
            "<|im_start|>user\nThink first. Why?<|im_end|>\n<|im_start|>assistant\n",
            ("Because.<|im_end|>", "The dog.<|im_end|>"),
        ),
    ],
)
def test_the_prompt_of_one_answer_is_the_one_that_a_model_is_given(
    source: str, kind: str, prompt: str, answers: tuple[str, str]
) -> None:
    row = row_under(source, FORMS[kind])
    assert (row.prompt, row.answers) == (prompt, answers)
    messages = [text_message(one["role"], one["content"]) for one in FORMS[kind].prompt]
    chat = reader(tokenizer_with(source)).chat
    assert chat is not None
    assert "".join(fragment.text for fragment in chat.prompt("r:1", messages)) == prompt


@pytest.mark.parametrize(
    ("source", "form", "sentence"),
    [
        (SECOND_COPY, FORMS["system"], "it moves text when an answer is added"),
        (LAST_KEEPS, FORMS["reasoned turns"], "turns cannot share a prompt|leaves out the reasoning"),
        (
            SYSTEM_LAST,
            Form("", FORMS["system"].prompt, FORMS["turns"].answers, FORMS["turns"].later),
            "drops or repeats a message, the system's",
        ),
    ],
)
def test_what_cannot_be_put_behind_it_is_refused(source: str, form: Form, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        row_under(source, form)


def test_a_switch_that_the_template_refuses_is_left_alone() -> None:
    """Hermes 4, with thinking on, wants reasoning in all earlier answers."""
    source = CHAT_TEMPLATE.replace(
        "{% for",
        "{% if thinking and messages | length > 2 %}{{ raise_exception('no reasoning') }}{% endif %}{% for",
        1,
    )
    row = row_under(source, FORMS["turns"])
    assert [run.removesuffix("<|im_end|>") for run in row.scored[0]] == ["Because.", "No."]
