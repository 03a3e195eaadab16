"""A row's text in fragments: which are the template's own, which a message's content, which a chunk of the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, Protocol

from align.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# template: trusted, its special tokens count · text: content · chunk: a piece of context, content too ·
# bare: a last user message of which the beginning is context and the end the question, content too
Kind = Literal["template", "text", "chunk", "bare"]

PLAIN_SEPARATOR = "\n\n"  # between messages where there is no chat template


@dataclass(frozen=True)
class Fragment:
    """A stretch of the rendered string and what it is."""

    text: str
    kind: Kind


@dataclass(frozen=True)
class Message:
    """One chat message whose content is made of fragments.

    Attributes:
        role: system, user, assistant, tool, developer.
        fragments: of its content.
        fields: what the template is given beside role and content: `tool_calls`, `reasoning_content`, `name`, …
    """

    role: str
    fragments: tuple[Fragment, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content(self) -> str:
        """The content as the template receives it."""
        return "".join(fragment.text for fragment in self.fragments)

    @property
    def holds_context(self) -> bool:
        """Whether spans in its content are needed."""
        return any(fragment.kind in ("chunk", "bare") for fragment in self.fragments)


def text_message(role: str, text: str, fields: Mapping[str, Any] | None = None) -> Message:
    """A message whose content is one piece of text."""
    return Message(role, (Fragment(text, "text"),), fields or {})


@dataclass(frozen=True)
class Segment:
    """A stretch of what follows the prompt: an answer with its end, which is scored, or what stands between answers."""

    fragments: tuple[Fragment, ...]
    scored: bool


@dataclass(frozen=True)
class Rendering:
    """A row's text.

    With ChatML (⏎ is a line break), one question and two answers to it: `prompt` is `<|im_start|>user⏎`, the question,
    `<|im_end|>⏎<|im_start|>assistant⏎`; `answers` are `yes<|im_end|>` and `no<|im_end|>`.

    Attributes:
        prompt: everything before the first answer, the generation prompt included.
        answers: `[1 + M]` what follows it: of n turns n scored segments with n − 1 others between them.
        dropped_reasoning: answers whose reasoning was left out (`data.thinking=drop`).
    """

    prompt: tuple[Fragment, ...]
    answers: tuple[tuple[Segment, ...], ...]
    dropped_reasoning: int = 0


class Template(Protocol):
    """Turns messages and answers into text whose parts are known."""

    def render(
        self,
        source: str,
        messages: Sequence[Message],
        questions: Sequence[Sequence[Message]],
        answers: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Rendering:
        """Args: `messages` to the first question, `questions` what is asked later, `answers` `[n][1 + M]`."""


@dataclass(frozen=True)
class PlainTemplate:
    """No chat template: contents follow each other, `separator` after each; answers end with `end`."""

    end: str
    separator: str

    def render(
        self,
        source: str,
        messages: Sequence[Message],
        questions: Sequence[Sequence[Message]],
        answers: Sequence[Sequence[Message]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> Rendering:
        """See `Template.render`; raises UserError for what is no text, such as tool calls."""
        if tools or any(_needs_template(one) for one in chain(messages, *questions, *answers)):
            raise UserError(
                f"{source}: tools, tool calls and reasoning_content need a chat template, which is not used here: "
                "leave out data.chat=never, or name a template with data.chat_template."
            )
        separator, end = Fragment(self.separator, "template"), Fragment(self.end, "template")
        branches = []
        for branch in zip(*answers, strict=True):
            segments = []
            for turn, answer in enumerate(branch):
                if turn:
                    asked = (f for one in questions[turn - 1] for f in (*one.fragments, separator))
                    segments.append(Segment((separator, *asked), scored=False))
                text = Fragment(without_end(answer.content, self.end), "text")
                segments.append(Segment((text, end), scored=True))
            branches.append(tuple(segments))
        return Rendering(
            prompt=tuple(f for message in messages for f in (*message.fragments, separator)),
            answers=tuple(branches),
        )


def _needs_template(message: Message) -> bool:
    """Whether joining contents would leave out a part of the message."""
    return message.role == "tool" or any(name != "name" for name in message.fields)


def without_end(text: str, end: str) -> str:
    """An answer saved with its end token written out would else get a second one (TRL's rule too).

    With `<|im_end|>` both `yes<|im_end|>` and `yes<|im_end|>⏎` are `yes`; white space behind another end stays.
    """
    written, mark = text.rstrip(), end.rstrip()
    return written.removesuffix(mark) if mark and written.endswith(mark) else text


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's end-of-text token, which ends answers where no chat template says otherwise."""
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-text token (eos_token), with which answers end.")
    return str(tokenizer.eos_token)
