"""Chat templates of many families × kinds of rows: what each row becomes under each of them.

`python -m tests.data.template_cases` prints the page docs/templates.md. The templates are those that TRL installs;
test_templates.py checks every case, and that the page says what the code does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import trl
from transformers import PreTrainedTokenizerFast

from align.data.examples import Example, TokenizedExample, Turn
from align.data.settings import DataSettings
from align.data.tokens import ExampleTokenizer
from tests.data.helpers import byte_tokenizer

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
    """Bytes, and one token for each marker that the template writes."""
    return tokenizer_with((FOLDER / f"{name}.jinja").read_text())


def tokenizer_with(source: str) -> PreTrainedTokenizerFast:
    """The same for the source of a template."""
    end = next((one for one in _ENDS if one in source), "<|eos|>")
    tokenizer = byte_tokenizer(
        source, special=sorted({*_SPECIAL.findall(source), "<|bos|>"} - {end}), end=end
    )
    tokenizer.bos_token = "<|bos|>"
    return tokenizer


def tokenize(tokenizer: PreTrainedTokenizerFast, form: Form, **data: Any) -> TokenizedExample:
    """The row as tokens."""
    settings = DataSettings(**({"date": TODAY} | data))
    return ExampleTokenizer(tokenizer, settings, chunk_tokens=100)(form.example())
