"""A row's text in fragments: which are the template's own, which a message's content, which a chunk of the context.

Where the template's text begins and ends is known from its structure (template_structure.py), not searched for. So a
document that contains chat markers such as `<|im_end|>` cannot move masks and spans.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from jinja2.exceptions import TemplateError

from align.core.errors import UserError
from align.data.template_structure import Structure, TemplateReader, roles_of_row

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
    """One chat message whose content is made of fragments."""

    role: str
    fragments: tuple[Fragment, ...]

    @property
    def content(self) -> str:
        """The content as the template receives it."""
        return "".join(fragment.text for fragment in self.fragments)


@dataclass(frozen=True)
class Rendering:
    """A row's text around its answers (n turns).

    With ChatML (⏎ is a line break), one question and two answers to it: `prompt` is `<|im_start|>user⏎`, the question,
    `<|im_end|>⏎<|im_start|>assistant⏎`; `answers` is `(("yes", "no"),)`; `end` is `<|im_end|>`.

    Attributes:
        prompt: everything before the first answer, the generation prompt included.
        between: `[n − 1]` what stands between the end of an answer and the next answer.
        answers: `[n][1 + M]` the answers as the template writes them.
        end: what ends an answer, up to and with its special token.
    """

    prompt: tuple[Fragment, ...]
    between: tuple[tuple[Fragment, ...], ...]
    answers: tuple[tuple[str, ...], ...]
    end: str


class Template(Protocol):
    """Turns messages and answers into text whose parts are known."""

    def render(
        self,
        source: str,
        messages: Sequence[Message],
        questions: Sequence[str],
        answers: Sequence[Sequence[str]],
    ) -> Rendering:
        """Args: `messages` to the first question, `questions` the later ones, `answers` `[n][1 + M]`."""


@dataclass(frozen=True)
class PlainTemplate:
    """No chat template: contents follow each other, `separator` after each; answers end with `end`."""

    end: str
    separator: str

    def render(
        self,
        source: str,
        messages: Sequence[Message],
        questions: Sequence[str],
        answers: Sequence[Sequence[str]],
    ) -> Rendering:
        """See `Template.render`."""
        separator = Fragment(self.separator, "template")
        return Rendering(
            prompt=tuple(f for message in messages for f in (*message.fragments, separator)),
            between=tuple((separator, Fragment(question, "text"), separator) for question in questions),
            answers=tuple(tuple(_without_end(text, self.end) for text in turn) for turn in answers),
            end=self.end,
        )


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, specials: re.Pattern[str]) -> None:
        self.reader = TemplateReader(tokenizer, specials)

    def render(
        self,
        source: str,
        messages: Sequence[Message],
        questions: Sequence[str],
        answers: Sequence[Sequence[str]],
    ) -> Rendering:
        """See `Template.render`.

        A thinking block that the template writes before answers (Qwen3) belongs to the prompt, unless an
        answer brings its own. White space that it writes there belongs to the answers.

        Raises:
            UserError: the template refuses these messages, or drops, repeats or rewrites their contents.
        """
        try:
            return self._render(messages, questions, answers)
        except (UserError, TemplateError) as error:
            raise UserError(f"{source}: the chat template cannot render this row ({error}).") from error

    def _render(
        self, messages: Sequence[Message], questions: Sequence[str], answers: Sequence[Sequence[str]]
    ) -> Rendering:
        roles = tuple(message.role for message in messages)
        structure = self.reader.structure(roles, len(answers))
        before = [
            _share_before(text, of_turn) for text, of_turn in zip(structure.before, answers, strict=True)
        ]
        return Rendering(
            prompt=(*self._prompt(structure, messages, roles), Fragment(before[0].of_prompt, "template")),
            between=tuple(self._between(structure, roles, questions, before[1:])),
            answers=tuple(
                tuple(own.of_answers + _answer(text, structure) for text in of_turn)
                for own, of_turn in zip(before, answers, strict=True)
            ),
            end=structure.end,
        )

    def _prompt(
        self, structure: Structure, messages: Sequence[Message], roles: tuple[str, ...]
    ) -> Iterator[Fragment]:
        """The template's text, and each message's fragments where its content stands."""
        for piece in structure.prompt:
            if isinstance(piece, str):
                yield Fragment(piece, "template")
            else:
                message = messages[piece]
                yield from _fit(message, self.reader.written(roles, piece, message.content, generation=True))

    def _between(
        self,
        structure: Structure,
        roles: tuple[str, ...],
        questions: Sequence[str],
        before: Sequence[_Before],
    ) -> Iterator[tuple[Fragment, ...]]:
        """From each answer but the last to the next one: text, question, text."""
        row_roles = roles_of_row(roles, len(questions) + 1)
        turns = zip(structure.between, questions, before, strict=True)
        for place, ((to_question, to_answer), question, own) in zip(
            range(len(roles) + 1, len(row_roles), 2), turns, strict=True
        ):
            written = self.reader.written(row_roles, place, question, generation=False)
            yield (
                Fragment(to_question, "template"),
                Fragment(written, "text"),
                Fragment(to_answer + own.of_prompt, "template"),
            )


class _Before(NamedTuple):
    """What a template writes before an answer, shared out: to the prompt before it, and to the answer's own text."""

    of_prompt: str
    of_answers: str


def _share_before(before: str, answers: Sequence[str]) -> _Before:
    """Whether what the template writes before the answers belongs to the prompt or to each answer.

    White space is the answers': `" "` before `yes` makes the answer `" yes"`. A thinking block, such as
    `<think>⏎⏎</think>⏎⏎`, is the prompt's, and left out where one of the answers begins with `<think>` itself.
    """
    if not before.strip():
        return _Before("", before)
    opening = before.split()[0]
    brought = any(answer.lstrip().startswith(opening) for answer in answers)
    return _Before("" if brought else before, "")


def _answer(text: str, structure: Structure) -> str:
    """An answer as the template writes it: without an end of its own, and without the white space that it strips."""
    text = _without_end(text, structure.end)
    text = text if structure.keeps[0] else text.lstrip()
    return text if structure.keeps[1] else text.rstrip()


def _fit(message: Message, written: str) -> list[Fragment]:
    """The message's fragments, cut to what the template has written of them.

    Of the fragments `" one"` and `" two "` a template that strips has written `"one two"`: `"one"` and `" two"`.

    Raises:
        UserError: it has rewritten a content of which the spans are needed.
    """
    content = message.content
    if written == content:
        return list(message.fragments)
    fragments = list(message.fragments)
    if written not in (content.lstrip(), content.rstrip(), content.strip()):
        if any(fragment.kind != "text" for fragment in fragments):
            raise UserError(f"it rewrites a {message.role} message that holds context")
        return [Fragment(written, "text")]
    start = content.find(written) if written and written in (content.lstrip(), content.strip()) else 0
    stop = start + len(written)
    cut, at = [], 0
    for fragment in fragments:
        text = fragment.text[max(0, start - at) : max(0, stop - at)]
        cut.append(replace(fragment, text=text))
        at += len(fragment.text)
    return cut


def _without_end(text: str, end: str) -> str:
    """An answer saved with its end token written out would else get a second one (TRL's rule too)."""
    return text.removesuffix(end) if end.strip() else text
