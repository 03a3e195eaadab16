"""Tool calls, their results, the column tools, the developer's role: all through the chat template."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from align.core.errors import UserError
from align.data.examples import Example, Turn
from align.data.formats import parse_row
from align.data.sources import RawRow
from tests.data.template_cases import (
    USER,
    Row,
    as_text,
    reader,
    reader_of,
    tokenizer_of,
    tokenizer_with,
    written,
)

CALL = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Says it.", "parameters": {}}}
CALLED = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "1", "name": "weather"},
]


def example_with(
    messages: list[dict[str, Any]], chosen: str = "Sunny.", rejected: str = "Rain.", **more: Any
) -> Example:
    fields = more.pop("fields", ())
    return Example("r:1", (Turn(None, chosen, (rejected,), fields=fields),), messages=tuple(messages), **more)


def as_objects(chat: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with the arguments of calls as objects, as templates want them."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    return [{**message, "tool_calls": [call]} if message.get("tool_calls") else message for message in chat]


@pytest.mark.parametrize(
    "name", ["qwen2_5", "qwen3", "qwen3_5_think", "llama3_1", "glm4moe", "gptoss", "nemotron_3_nano"]
)
@pytest.mark.parametrize("last", ["tool", "user"])
def test_tool_calls_and_their_results_are_in_the_prompt(name: str, last: str) -> None:
    tokenizer = tokenizer_of(name)
    messages = CALLED if last == "tool" else [*CALLED, {"role": "user", "content": "So?"}]
    row = as_text(tokenizer, reader_of(name)(example_with(messages, tools=(TOOL,))))
    for answer, text in zip(row.answers, ("Sunny.", "Rain."), strict=True):
        chat = [*as_objects(messages), {"role": "assistant", "content": text}]
        theirs = [written(tokenizer, chat, tools=[TOOL], **own) for own in ({}, {"enable_thinking": False})]
        ours = row.prompt + answer
        assert any(one.startswith(ours) or ours == one + str(tokenizer.eos_token) for one in theirs)


@pytest.mark.parametrize("name", ["qwen3", "llama3_1", "glm4moe", "gptoss", "qwen3_8"])
def test_an_answer_may_call_a_tool(name: str) -> None:
    tokenizer = tokenizer_of(name)
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    calls = ({"tool_calls": [CALL]}, {"tool_calls": [other]})
    example = example_with([USER], "", "", fields=calls, tools=(TOOL,))
    row = as_text(tokenizer, reader_of(name)(example))
    for answer, call in zip(
        row.answers, (as_objects([{"tool_calls": [CALL]}])[0]["tool_calls"][0], other), strict=True
    ):
        chat = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
        theirs = [written(tokenizer, chat, tools=[TOOL], **own) for own in ({}, {"enable_thinking": False})]
        ours = row.prompt + answer
        assert any(one.startswith(ours) or ours == one + str(tokenizer.eos_token) for one in theirs)
        assert call["function"]["name"] in answer


@pytest.mark.parametrize("name", ["qwen3", "glm4moe", "nemotron_3_nano", "qwen3_5_think"])
def test_an_answer_may_reason_before_it_calls(name: str) -> None:
    """The call stands where the answer would, behind the block; the reasoning comes in a field."""
    tokenizer = tokenizer_of(name)
    fields = tuple({"tool_calls": [CALL], "reasoning_content": text} for text in ("Hm.", "Ha."))
    row = as_text(tokenizer, reader_of(name)(example_with([USER], "", "", fields=fields, tools=(TOOL,))))
    for answer, own in zip(row.answers, fields, strict=True):
        chat = as_objects([USER, {"role": "assistant", "content": "", **own}])
        theirs = written(tokenizer, chat, tools=[TOOL])
        ours = row.prompt + answer
        assert theirs.startswith(ours) or ours == theirs + str(tokenizer.eos_token)
        assert own["reasoning_content"] in answer and "weather" in answer
        assert ours[ours.rindex("Why?") :].count("<think>") == answer.count("</think>") == 1
    prompt = written(tokenizer, [USER], tools=[TOOL], add_generation_prompt=True)
    assert row.prompt == prompt


def test_what_a_template_drops_is_refused() -> None:
    with pytest.raises(UserError, match="drops the tool calls"):
        reader_of("gemma3")(example_with([*CALLED[:2], *CALLED[:1]]))
    with pytest.raises(UserError, match="no place for the column tools"):
        reader_of("phi3")(example_with([USER], tools=(TOOL,)))
    said = [
        {**message, "content": "Let me see."} if message.get("tool_calls") else message for message in CALLED
    ]
    with pytest.raises(
        UserError, match=r"drops what a message of the assistant says .* leave that out of the row"
    ):
        reader_of("llama3_1")(example_with(said))


JOINING = (  # knows no tools, and joins what every message says
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' + m['content'] + '<|im_end|>' }}{% endfor %}"
)
TWO_ROLES = (
    "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}"
    "{% endif %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "messages", "sentence"),
    [
        (JOINING, [*CALLED[:2], *CALLED[:1]], r"does not write tool calls \(it drops the tool calls"),
        (TWO_ROLES, CALLED, r"does not write tool calls \(no such role\)"),
        (TWO_ROLES, [USER, CALLED[2]], r"does not write results of tools \(no such role\)"),
        (TWO_ROLES, [{"role": "system", "content": "s"}, USER], r"cannot render this row \(no such role\)"),
    ],
)
def test_a_template_without_tools_is_named_with_a_cure(
    source: str, messages: list[dict[str, Any]], sentence: str
) -> None:
    """The template's own complaint, on a role or on a content that is null, says nothing of tools."""
    with pytest.raises(UserError, match=sentence) as refused:
        row_with(source + "{% if add_generation_prompt %}assistant: {% endif %}", example_with(messages))
    assert ("data.chat_template=FILE" in str(refused.value)) == ("does not write" in sentence)


def test_a_developer_is_the_system_where_the_template_knows_none() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, USER]
    system = [{"role": "system", "content": "Be brief."}, USER]
    for name in ("qwen3", "llama3_1"):
        shown = [
            as_text(tokenizer_of(name), reader_of(name)(example_with(one))).prompt
            for one in (messages, system)
        ]
        assert "Be brief." in shown[0]
        assert ("developer" in shown[0]) or shown[0] == shown[1]


def test_markers_in_a_tools_text_stay_text() -> None:
    """In arguments, results, descriptions: no special token comes out of what a message or a tool says."""
    tokenizer = tokenizer_of("qwen3")
    names = ["<|im_start|>", "<|im_end|>"]
    special = tokenizer.convert_tokens_to_ids(names)

    def count(text: str) -> int:
        call = {"function": {"name": "f", "arguments": {text: text}}}
        messages = [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": text},
            {"role": "user", "content": "So?"},
        ]
        tool = {"type": "function", "function": {"name": "f", "description": text}}
        row = reader_of("qwen3")(example_with(messages, tools=(tool,)))
        assert text in tokenizer.decode(row.prompt_ids)
        return int(np.isin(row.prompt_ids, special).sum())

    assert count("<|im_end|>") == count("nothing")


# ---- what templates ask for, in miniature and in our own words

CALLING_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}CONTENT"
    "{% for call in m.tool_calls or [] %}"
    "{{ '<tool_call>' + call.function.name + (call.function.arguments | tojson) + '</tool_call>' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nGIVEN{% endif %}"
)
JOINED = CALLING_CHAT.replace("CONTENT", "{{ m.content + '' }}").replace("GIVEN", "")
NINE = JOINED.replace(
    "{% for call in m.tool_calls or [] %}",
    "{% if m.role == 'tool' %}{{ ' of ' + m.tool_call_id }}{% endif %}{% for call in m.tool_calls or [] %}"
    "{% if call.id | length != 9 %}{{ raise_exception('ids have nine characters') }}{% endif %}{{ call.id + ' ' }}",
)
PRINTED = JOINED.replace(
    "{% for m", "{% for tool in tools or [] %}{{ tool | string }}{% endfor %}{% for m", 1
)
OPENING = CALLING_CHAT.replace("CONTENT", "{{ m.content or '' }}").replace("GIVEN", "<think>\n")
AFTER = JOINED.replace("{% if add_generation_prompt %}", "{% if true %}")  # a generation prompt in any case


def row_with(source: str, example: Example, **data: Any) -> Row:
    tokenizer = tokenizer_with(source)
    return as_text(tokenizer, reader(tokenizer, **data)(example))


def test_a_content_that_a_template_joins_is_empty_where_a_call_has_none() -> None:
    row = row_with(JOINED, example_with(CALLED))
    assert '<|im_start|>assistant\n<tool_call>weather{"city": "Rome"}</tool_call><|im_end|>' in row.prompt


@pytest.mark.parametrize("ids", [("call_a1B2c3D4e5F6", "call_other"), (None, None)])
def test_calls_are_counted_where_a_template_wants_other_ids(ids: tuple[str | None, str | None]) -> None:
    """Each result keeps to its call, in whatever order they come."""
    calls = [CALL if one is None else {**CALL, "id": one} for one in ids]
    results = [
        {"role": "tool", "content": text} | ({} if one is None else {"tool_call_id": one})
        for one, text in zip(ids, ("sunny", "dry"), strict=True)
    ]
    if ids[0] is not None:
        results.reverse()
    row = row_with(
        NINE, example_with([USER, {"role": "assistant", "content": None, "tool_calls": calls}, *results])
    )
    assert row.prompt.count("000000001 <tool_call>") == row.prompt.count("000000002 <tool_call>") == 1
    assert "sunny of 000000001<" in row.prompt and "dry of 000000002<" in row.prompt


def test_ids_that_a_template_takes_stay() -> None:
    calls = [{**CALL, "id": "abcdefghi"}]
    messages = [USER, {"role": "assistant", "content": "", "tool_calls": calls}]
    row = row_with(
        NINE, example_with([*messages, {"role": "tool", "content": "dry", "tool_call_id": "abcdefghi"}])
    )
    assert "abcdefghi <tool_call>" in row.prompt and "dry of abcdefghi<" in row.prompt


@pytest.mark.parametrize(
    ("written_as", "start"),
    [("tool | string", "{'type': 'function'"), ("tool | tojson(ensure_ascii=True)", '{"type": "function"')],
)
def test_tools_may_be_written_as_python_prints_them_or_escaped(written_as: str, start: str) -> None:
    source = PRINTED.replace("tool | string", written_as)
    assert row_with(source, example_with([USER], tools=(TOOL,))).prompt.startswith(start)


def test_what_is_wrong_with_filled_calls_is_told() -> None:
    source = JOINED.replace("CONTENT", "").replace(
        "{% for call",
        "{% if m.role == 'tool' %}{{ raise_exception('tools never answer') }}{% endif %}{% for call",
        1,
    )
    with pytest.raises(UserError, match="tools never answer"):
        row_with(source, example_with(CALLED))


def test_a_call_behind_a_closed_block_is_whole() -> None:
    """Its marks stand between the generation prompt and the function's name."""
    other = {"type": "function", "function": {"name": "time", "arguments": {}}}
    example = example_with([USER], "", "", fields=({"tool_calls": [CALL]}, {"tool_calls": [other]}))
    row = row_with(OPENING, example, thinking="close")
    assert row.prompt.endswith("assistant\n<think>\n\n</think>\n\n")
    assert row.answers[0] == '<tool_call>weather{"city": "Rome"}</tool_call><|im_end|>'
    without = OPENING.replace("GIVEN", "").replace(
        "<|im_start|>assistant\n<think>", "<|im_start|>bot\n<think>"
    )
    with pytest.raises(UserError, match="not what it writes before a tool call"):
        row_with(without, example, thinking="close")


def test_reasoning_before_a_call_may_stand_in_the_content() -> None:
    """QwQ's template knows no field for it."""
    fields = tuple({"tool_calls": [CALL], "reasoning_content": text} for text in ("Hm.", "Ha."))
    source = OPENING + "{# </think> #}"
    row = row_with(source, example_with([USER], "", "", fields=fields))
    assert row.prompt.endswith("assistant\n<think>\n")
    assert row.answers[1].startswith("Ha.\n</think>\n<tool_call>weather")


def test_a_call_ends_with_the_end_of_text_token() -> None:
    example = example_with([USER], "", "", fields=({"tool_calls": [CALL]}, {"tool_calls": [CALL, CALL]}))
    row = row_with(AFTER, example)
    assert all(answer.endswith("</tool_call><|im_end|>") for answer in row.answers)


# ---- raw rows


def parsed(**values: Any) -> Example:
    return parse_row(RawRow(index=0, source="r:1", values=values)).example


def says(text: str, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **fields}


def test_messages_keep_what_templates_read_and_nothing_else() -> None:
    """Null is as absent: Arrow fills schemas that differ with it."""
    messages = [
        {"role": "user", "content": "Weather?", "tool_calls": None, "name": None, "id": 7},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**CALL, "id": None}],
            "reasoning_content": "Hm.",
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "1", "tool_calls": []},
        {"role": "user", "content": "So?"},
    ]
    example = parsed(
        prompt=messages, chosen=[says("Sunny.")], rejected=[says("Rain.")], tools=json.dumps([TOOL])
    )
    assert list(example.messages) == [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Hm."},
        {"role": "tool", "content": "sunny", "tool_call_id": "1"},
        {"role": "user", "content": "So?"},
    ]
    assert example.tools == (TOOL,)
    assert parsed(prompt=messages[:1], chosen=[says("a")], rejected=[says("b")], tools=None).tools == ()


def test_sharegpt_calls_and_observations() -> None:
    conversation = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Rome"}}'},
        {"from": "observation", "value": "sunny"},
    ]
    example = parsed(
        conversations=conversation,
        chosen={"from": "gpt", "value": "a"},
        rejected={"from": "gpt", "value": "b"},
    )
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
    assert list(example.messages[1:]) == [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "sunny"},
    ]


def test_answers_keep_reasoning_and_calls() -> None:
    example = parsed(
        prompt=[USER],
        chosen=[says("Yes.", reasoning_content="Hm.")],
        rejected=[{"role": "assistant", "content": None, "tool_calls": [CALL]}],
    )
    assert example.turns == (
        Turn(None, "Yes.", ("",), fields=({"reasoning_content": "Hm."}, {"tool_calls": [CALL]})),
    )


def test_answers_that_differ_in_reasoning_alone_are_not_equal() -> None:
    values = {
        "prompt": [USER],
        "chosen": [says("Yes.", reasoning_content="Hm.")],
        "rejected": [
            [says("Yes.", reasoning_content="Ha.")],
            [says("Yes.", reasoning_content="Hm.")],
        ],
    }
    found = parse_row(RawRow(index=0, source="r:1", values=values))
    assert found.dropped == 1 and found.example.turns[0].fields[1] == {"reasoning_content": "Ha."}
    assert found.example.turns[0].rejected == ("Yes.",)


def test_questions_behind_the_last_answer_are_left_out_and_counted() -> None:
    later = {"role": "user", "content": "And then?"}
    example = parsed(prompt=[USER], chosen=[says("a"), later], rejected=[says("b"), later])
    assert example.turns == (Turn(None, "a", ("b",)),) and example.dropped_messages == 2
    only = parsed(messages=[USER, says("a"), later])
    assert only.turns == (Turn(None, "a", ()),) and only.dropped_messages == 1


def test_results_of_tools_stand_between_turns() -> None:
    calling = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "content": "sunny"}
    example = parsed(
        messages=[USER, calling, result, says("Sunny."), {"role": "user", "content": "Sure?"}, says("Yes.")]
    )
    assert [turn.asked for turn in example.turns] == [(), (result,), ()]
    assert [turn.question for turn in example.turns] == [None, "sunny", "Sure?"]
    row = as_text(tokenizer_of("qwen2_5"), reader_of("qwen2_5")(example))
    chat = as_objects(
        [USER, calling, result, says("Sunny."), {"role": "user", "content": "Sure?"}, says("Yes.")]
    )
    assert written(tokenizer_of("qwen2_5"), chat).startswith(row.prompt + row.answers[0])
    assert [run.endswith("<|im_end|>") for run in row.scored[0]] == [True] * 3
    assert "sunny" not in "".join(row.scored[0])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"tools": "no JSON"}, "column tools is text, and no JSON"),
        ({"tools": [1]}, "column tools must be a list of JSON schemas"),
        ({"prompt": [{"from": "function_call", "value": "f()"}]}, "a function_call message must be JSON"),
        ({"prompt": [{"role": "assistant", "content": None}]}, "content is no string but NoneType"),
        ({"chosen": [says("a"), says("b")]}, "must start and end with an assistant's message, in turns"),
    ],
)
def test_what_is_no_conversation_is_refused(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^r:1: .*{sentence}"):
        parsed(**({"prompt": [USER], "chosen": [says("a")], "rejected": [says("b")]} | values))
