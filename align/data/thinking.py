"""Reasoning at the head of an answer: `<think>⏎It says so.⏎</think>⏎⏎Ada.` is a thinking block and `Ada.`"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Tags(NamedTuple):
    """What stands before and after reasoning."""

    opening: str
    closing: str


# As the families write them: Qwen, DeepSeek, GLM, Nemotron and most others; Mistral; Seed; Cohere; Gemma 4; EXAONE
# Deep; LongCat.
TAGS = (
    Tags("<think>", "</think>"),
    Tags("[THINK]", "[/THINK]"),
    Tags("<seed:think>", "</seed:think>"),
    Tags("<|START_THINKING|>", "<|END_THINKING|>"),
    Tags("<|channel>thought", "<channel|>"),
    Tags("<thought>", "</thought>"),
    Tags("<longcat_think>", "</longcat_think>"),
)
# In generated text also gpt-oss's channels, whose templates take reasoning in a field alone.
GENERATED = (*TAGS, Tags("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"))


@dataclass(frozen=True)
class Thought:
    """An answer with reasoning, taken apart; places are of the text that it was found in.

    Attributes:
        tags: which surround the reasoning.
        opened: the text has the opening tag. False: a model's own output where the prompt opens the block,
            `It says so.⏎</think>⏎⏎Ada.`
        reasoning: `(start, stop)` of what stands between the tags.
        answer: where the answer begins; None where the block is never closed.
    """

    tags: Tags
    opened: bool
    reasoning: tuple[int, int]
    answer: int | None

    def is_empty(self, text: str) -> bool:
        """Whether nothing but white space stands between the tags."""
        return self.answer is not None and not text[slice(*self.reasoning)].strip()


def find_thought(text: str, known: Sequence[Tags] = TAGS) -> Thought | None:
    """The thinking block at the head of an answer.

    Args:
        text: the answer.
        known: tags that count.

    Returns:
        None where it has none. A closing tag that no opening one precedes ends a block that the prompt has opened.
    """
    head = len(text) - len(text.lstrip())
    for tags in known:
        opened = text.startswith(tags.opening, head)
        start = head + len(tags.opening) if opened else 0
        stop = text.find(tags.closing, start)
        if opened and stop < 0:
            return Thought(tags, True, (start, len(text)), None)
        if stop >= 0 and (opened or tags.opening not in text[:stop]):
            return Thought(tags, opened, (start, stop), stop + len(tags.closing))
    return None


def tags_of(template: str) -> tuple[Tags, ...]:
    """The tags that a chat template knows, in its source."""
    return tuple(tags for tags in TAGS if tags.opening in template or tags.closing in template)


def opens_block(prompt: str, known: Sequence[Tags] = TAGS) -> Tags | None:
    """The tags of a thinking block that the prompt opens at its end, so that an answer begins inside it."""
    bare = prompt.rstrip()
    return next((tags for tags in known if bare.endswith(tags.opening)), None)


def before_closed_block(written: str, given: str, known: Sequence[Tags]) -> int | None:
    """How much of what is written before an answer the prompt `given` says before a closed block at its end.

    Gemma 4 is given `<|turn>model⏎<|channel>thought⏎<channel|>`, and answers are written behind `<|turn>model⏎`;
    DeepSeek-V3.2 is given `<think></think>`, and answers are written behind `</think>` alone.

    Returns:
        None where the prompt has no such block, or is another one before it.
    """
    bare = given.rstrip()
    tags = next((one for one in known if bare.endswith(one.closing)), None)
    if tags is None:
        return None
    head = bare.removesuffix(tags.closing)
    if head.rstrip().endswith(tags.opening):
        head = head.rstrip().removesuffix(tags.opening)
    if not written.startswith(head):
        return len(written) if written.rstrip() == head.rstrip() else None
    stop = len(head)
    if written.startswith(tags.closing, stop):
        stop += len(tags.closing)
    return stop if written[stop:].strip() else len(written)


def before_open_block(written: str, given: str, tags: Tags) -> int | None:
    """How much of what is written before an answer the prompt `given` says, which opens a block at its end.

    Behind that stands what is the answer's own: the marks of a tool call, `<|START_RESPONSE|>`.

    Returns:
        None where the prompt is another one before the block.
    """
    head = given[: given.rindex(tags.opening)].rstrip()
    if not written.startswith(head):
        return None
    behind = written[len(head) :].lstrip().removeprefix(tags.opening).lstrip()
    return len(written) - len(behind.removeprefix(tags.closing).lstrip())


def closing_of(given: str, tags: Tags) -> str:
    """What closes at once the block that a prompt opens: after `<think>⏎` it is `⏎</think>⏎⏎`."""
    return f"\n{tags.closing}\n\n" if given.endswith("\n") else f"{tags.closing}\n\n"


def empty_block(text: str, known: Sequence[Tags]) -> tuple[int, int] | None:
    """`(start, stop)` of a block without reasoning, as templates write it before answers that have none."""
    for tags in known:
        found = re.search(rf"{re.escape(tags.opening)}\s*{re.escape(tags.closing)}", text)
        if found:
            return found.span()
    return None


def without_thinking(text: str) -> tuple[str, bool]:
    """A model's answer as its reader wants it, and whether it came with a thinking block, which is left out.

    `<think>⏎So.⏎</think>⏎⏎Ada.` and, where the prompt has opened the block, `So.⏎</think>⏎⏎Ada.` are `Ada.`; of an
    answer that was cut while it still thought nothing is left. An empty block is left out and does not count.
    """
    thought = find_thought(text, GENERATED)
    if thought is None:
        return text, False
    rest = "" if thought.answer is None else text[thought.answer :].lstrip()
    return rest, not thought.is_empty(text)
