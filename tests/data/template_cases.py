"""Chat templates of many families × kinds of rows: what each row becomes under each of them.

`python -m tests.data.template_cases` prints the page docs/templates.md. The templates are those that TRL installs;
test_templates.py checks every case, and that the page says what the code does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import trl
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast

from align.core.errors import UserError
from align.data.describe import answer_runs
from align.data.examples import Example, TokenizedExample, Turn
from align.data.settings import DataSettings
from align.data.tokens import ExampleTokenizer
from tests.data.helpers import byte_tokenizer
from tests.tiny import CHAT_TEMPLATE

FOLDER = Path(trl.__file__).parent / "chat_templates"
PICTURES = ("idefics3", "llava_next", "smolvlm")  # they take contents as lists of parts, never as text
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.startswith(PICTURES)))
TODAY = "2026-01-31"

USER = {"role": "user", "content": "Why?"}
LATER = {"role": "user", "content": "And then?"}
PLAIN = ("Because.", "The dog.")
REASONED = ("<think>\nHm.\n</think>\n\nBecause.", "<think>\nHa.\n</think>\n\nThe dog.")
OUTPUT = ("Hm.\n</think>\n\nBecause.", "Ha.\n</think>\n\nThe dog.")

_SPECIAL = re.compile(
    r"<\|[^|<>\s]+\|>|<｜[^｜<>\s]+｜>|<(?:start|end)_of_turn>|<\|?turn\|?>|<\|channel>|<channel\|>"
    r"|<\|tool_call>|<tool_call\|>|\[/?INST\]|</?s>|\[gMASK\]|<sop>"
)
# eos_token of the families whose answers end with it; the other families' templates end answers with another token.
_ENDS = ("<|END_OF_TURN_TOKEN|>", "<|return|>", "<|im_end|>", "<｜end▁of▁sentence｜>", "<|eot_id|>")


@dataclass(frozen=True)
class Form:
    """A kind of row.

    Attributes:
        says: for people.
        prompt: messages.
        answers: `[n][2]`, the chosen one first.
        later: n − 1 questions.
        fields: of both answers' messages.
    """

    says: str
    prompt: Sequence[dict[str, str]]
    answers: Sequence[tuple[str, str]]
    later: Sequence[str] = ()
    fields: tuple[dict[str, str], dict[str, str]] | None = None

    def example(self) -> Example:
        """The row."""
        turns = [
            Turn(question, chosen, (rejected,), fields=self.fields or ())
            for question, (chosen, rejected) in zip((None, *self.later), self.answers, strict=True)
        ]
        return Example("r:1", tuple(turns), messages=tuple(self.prompt))

    def conversation(self, branch: int) -> list[dict[str, Any]]:
        """Prompt and answers of one branch as TRL would hand them to the template."""
        messages: list[dict[str, Any]] = list(self.prompt)
        for turn, pair in enumerate(self.answers):
            if turn:
                messages.append({"role": "user", "content": self.later[turn - 1]})
            fields = self.fields[branch] if self.fields else {}
            messages.append({"role": "assistant", "content": pair[branch], **fields})
        return messages


FORMS = {
    "plain": Form("answers without reasoning", [USER], [PLAIN]),
    "system": Form("with a system message", [{"role": "system", "content": "Be brief."}, USER], [PLAIN]),
    "empty system": Form("with an empty one", [{"role": "system", "content": ""}, USER], [PLAIN]),
    "reasoned": Form("`<think>…</think>` and an answer, twice", [USER], [REASONED]),
    "field": Form(
        "reasoning in `reasoning_content`",
        [USER],
        [PLAIN],
        fields=({"reasoning_content": "Hm."}, {"reasoning_content": "Ha."}),
    ),
    "output": Form("`…</think>` and an answer: a model's own output", [USER], [OUTPUT]),
    "mixed": Form("the chosen answer reasons, the other does not", [USER], [(REASONED[0], PLAIN[1])]),
    "turns": Form("two turns without reasoning", [USER], [PLAIN, ("No.", "Yes.")], ["And then?"]),
    "reasoned turns": Form(
        "two turns, the first chosen answer reasons",
        [USER],
        [(REASONED[0], PLAIN[1]), ("No.", "Yes.")],
        ["And then?"],
    ),
    "history": Form(
        "reasoning in an earlier answer of the prompt",
        [USER, {"role": "assistant", "content": REASONED[0]}, LATER],
        [("No.", "Yes.")],
    ),
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Bytes, and one token for each marker that TRL's template of this name writes."""
    return tokenizer_with((FOLDER / f"{name}.jinja").read_text())


def tokenizer_with(source: str) -> PreTrainedTokenizerFast:
    """The same for the source of a template."""
    end = next((one for one in _ENDS if one in source), "<|eos|>")
    tokenizer = byte_tokenizer(
        source, special=sorted({*_SPECIAL.findall(source), "<|bos|>"} - {end}), end=end
    )
    tokenizer.bos_token = "<|bos|>"
    return tokenizer


@cache
def reader_of(name: str) -> ExampleTokenizer:
    """Tokenises rows under TRL's template of this name."""
    return reader(tokenizer_of(name))


def reader(tokenizer: PreTrainedTokenizerFast, **data: Any) -> ExampleTokenizer:
    """Tokenises rows with these settings of the group `data`."""
    return ExampleTokenizer(tokenizer, DataSettings(**({"date": TODAY} | data)), chunk_tokens=100)


def written(tokenizer: PreTrainedTokenizerFast, chat: Sequence[dict[str, Any]], **variables: Any) -> str:
    """What transformers writes for a conversation, on the day TODAY."""

    def day(call: re.Match[str]) -> str:
        return f"'{date.fromisoformat(TODAY).strftime(call[2])}'"

    source = re.sub(r"""strftime_now\((['"])(.*?)\1\)""", day, str(tokenizer.chat_template))
    try:
        text = tokenizer.apply_chat_template(list(chat), chat_template=source, tokenize=False, **variables)
    except TemplateError:  # Gemma has no system role; a system message that says nothing is left out for it
        if chat[0] != {"role": "system", "content": ""}:
            raise
        return written(tokenizer, chat[1:], **variables)
    return str(text)


@dataclass(frozen=True)
class Row:
    """A tokenised row as text.

    Attributes:
        prompt: the prompt.
        answers: what follows it, of each branch.
        scored: the parts of it that are scored.
    """

    prompt: str
    answers: tuple[str, ...]
    scored: tuple[tuple[str, ...], ...]


def as_text(tokenizer: PreTrainedTokenizerFast, example: TokenizedExample) -> Row:
    """On bytes, tokens and text say the same."""
    runs = [
        tuple(tokenizer.decode(ids) for ids, scored in answer_runs(answer) if scored)
        for answer in example.answers
    ]
    answers = tuple(tokenizer.decode(answer.input_ids) for answer in example.answers)
    return Row(tokenizer.decode(example.prompt_ids), answers, tuple(runs))


# How a row's text relates to what the template writes for the conversation.
TEMPLATE = "template"  # exactly that
SWITCHED = "switched"  # that with thinking switched on or off, as the answers imply
FIELD = "field"  # that of the conversation with the reasoning in `reasoning_content`
OUTPUT = "output"  # the generation prompt and behind it the answer as a model puts it out
REFUSED = "refused"


@cache
def outcome(name: str, kind: str) -> str:
    """What becomes of a row under TRL's template of this name; raises AssertionError where it is none of the above."""
    tokenizer, form = tokenizer_of(name), FORMS[kind]
    try:
        row = as_text(tokenizer, reader_of(name)(form.example()))
    except UserError:
        return REFUSED
    kinds = [kind_of(tokenizer, form, row, branch) for branch in range(2)]
    return next((kind for kind in kinds if kind != TEMPLATE), TEMPLATE)


def kind_of(tokenizer: PreTrainedTokenizerFast, form: Form, row: Row, branch: int) -> str:
    """The same of one branch."""
    ours = row.prompt + row.answers[branch]
    chat = form.conversation(branch)
    end = str(tokenizer.eos_token)
    for kind, variant, variables in (
        (TEMPLATE, chat, {}),
        (FIELD, _in_field(chat), {}),
        (SWITCHED, chat, {"enable_thinking": False}),
        (SWITCHED, chat, {"enable_thinking": True}),
    ):
        theirs = written(tokenizer, variant, **variables)
        if theirs.startswith(ours) or ours == theirs + end:
            return kind
    for variables in ({}, {"enable_thinking": True}):
        given = written(tokenizer, chat[:-1], add_generation_prompt=True, **variables)
        said = (
            str(chat[-1].get("reasoning_content", "")) + "\n</think>\n\n"
            if "reasoning_content" in chat[-1]
            else ""
        )
        said += str(chat[-1]["content"])
        said = said.removeprefix("<think>\n") if given.endswith("<think>\n") else said
        if ours.startswith(given + said) and len(ours) - len(given + said) <= len(end) + 8:
            return OUTPUT
    raise AssertionError(f"{ours!r} is nothing that the template writes")


def _in_field(chat: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation with reasoning at the head of contents in a field."""
    messages = []
    for message in chat:
        head, tag, rest = str(message["content"]).partition("</think>")
        if message["role"] == "assistant" and tag:
            reasoning = head.removeprefix("<think>").strip()
            message = {"role": "assistant", "content": rest.lstrip(), "reasoning_content": reasoning}
        messages.append(message)
    return messages


# Templates of families that TRL has none of, in miniature and in our own words.
QWQ = (  # the prompt opens a block; what stands before the last closing tag is left out of all answers
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
THINKING_2507 = QWQ.replace(  # the last answer is written with a block, which may be empty; there is no switch
    "{{ m.content.split('</think>')[-1].lstrip('\n') if m.role == 'assistant' else m.content }}",
    "{% set parts = m.content.split('</think>') %}{% if m.role == 'assistant' %}{% if loop.last %}"
    "{{ '<think>\n' + (parts[0].split('<think>')[-1].strip('\n') if parts | length > 1 else '') + '\n</think>\n\n' }}"
    "{% endif %}{{ parts[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}",
)
MAGISTRAL = (  # the tags are special tokens; contents are written as they are
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% else %}{{ m.content }}</s>{% endif %}{% endfor %}{# [THINK] [/THINK] #}"
)
V3_1 = (  # without thinking the prompt ends with a closing tag alone
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% else %}<|assistant|></think>"
    "{{ m.content.split('</think>', 1)[-1] }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}"
)
FLAGGED = CHAT_TEMPLATE.replace(  # a word in the system message is a switch, and is not written (SmolLM3)
    "message['content'] }}", "message['content'].replace('/no_think', '').rstrip() }}"
)
FOLDED = (  # the system message is a part of the first question, with a heading (Llama-2, old Mistral)
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
    "{% else %}{% set s = '' %}{% endif %}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (s if loop.first else '') + m.content.strip() + ' [/INST]' }}{% else %}"
    "{{ ' ' + m.content.strip() + ' </s>' }}{% endif %}{% endfor %}"
)
ASK = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"


def row_under(source: str, form: Form, **data: Any) -> Row:
    tokenizer = tokenizer_with(source)
    return as_text(tokenizer, reader(tokenizer, **data)(form.example()))


HEAD = """# Chat templates

What becomes of rows under the chat templates that TRL installs. This page is made by
`python -m tests.data.template_cases`, and a test holds it to what the code does.

Prompt and answers are cut out of what the template writes for the whole conversation, the answer in its place. The cut
is where the generation prompt ends, so that training and generation see the same prompt. `data.thinking` in
[Data](data.md#thinking) says what is done about reasoning.

- **{template}**: prompt and answer are what the template writes for the conversation, up to the answer's end.
- **{field}**: the same for the conversation with its reasoning in `reasoning_content`, since the template does not know
  the tags `<think>` or would write a second block before them.
- **{switched}**: the same with thinking switched on or off as the answers imply, since the template writes that into
  the question or the system message as well.
- **{output}**: the template leaves out the reasoning of an answer, or the tag that opens it. So the prompt is the
  generation prompt, and the answer is written behind it as the model itself would write it.
- **{refused}**: refused in a sentence that names the row and the cure.

The kinds of rows:

"""


def page() -> str:
    """docs/templates.md."""
    names = {
        "template": TEMPLATE,
        "field": FIELD,
        "switched": SWITCHED,
        "output": OUTPUT,
        "refused": REFUSED,
    }
    lines = [f"- {kind}: {form.says}" for kind, form in FORMS.items()]
    lines += ["", f"| template | {' | '.join(FORMS)} |", f"|---|{'---|' * len(FORMS)}"]
    for name in NAMES:
        cells = [outcome(name, kind) for kind in FORMS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return HEAD.format(**names) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
