"""Chat templates taken apart: which characters are the template's own and which are a message's content.

The template is rendered once with a mark in place of every content and split at the marks. So masks and
spans come from structure, and a document that contains chat markers cannot move them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from jinja2.exceptions import TemplateError

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


@dataclass(frozen=True)
class _Structure:
    """What a chat template writes around the contents of a row of certain roles (n turns).

    Attributes:
        prompt: text and marks up to the first answer, with the generation prompt.
        before: `[n]` white space or thinking block that it writes after the generation prompt.
        between: `[n − 1]` (text before the next question, text after it up to its generation prompt).
        end: what ends an answer.
        keeps: whether it keeps an answer's leading and trailing white space.
    """

    prompt: tuple[str | int, ...]
    before: tuple[str, ...]
    between: tuple[tuple[str, str], ...]
    end: str
    keeps: tuple[bool, bool]


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, specials: re.Pattern[str]) -> None:
        self.tokenizer = tokenizer
        self.specials = specials
        self._skeletons: dict[tuple[tuple[str, ...], bool], str] = {}
        self._structures: dict[tuple[tuple[str, ...], int], _Structure] = {}

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
        structure = self._structure(roles, len(answers))
        prompt: list[Fragment] = []
        for part in structure.prompt:
            if isinstance(part, str):
                prompt.append(Fragment(part, "template"))
            else:
                written = self._written(roles, True, part, messages[part].content)
                prompt.extend(_fit(messages[part], written))
        leads = [_lead(before, turn) for before, turn in zip(structure.before, answers, strict=True)]
        prompt.append(Fragment(leads[0][0], "template"))
        all_roles = _all_roles(roles, len(answers))
        between = []
        for k, ((head, tail), question) in enumerate(zip(structure.between, questions, strict=True)):
            written = self._written(all_roles, False, len(roles) + 2 * k + 1, question)
            between.append(
                (
                    Fragment(head, "template"),
                    Fragment(written, "text"),
                    Fragment(tail + leads[k + 1][0], "template"),
                )
            )
        texts = tuple(
            tuple(lead + self._answer(text, structure) for text in turn)
            for (_, lead), turn in zip(leads, answers, strict=True)
        )
        return Rendering(tuple(prompt), tuple(between), texts, structure.end)

    def _answer(self, text: str, structure: _Structure) -> str:
        text = _without_end(text, structure.end)
        text = text if structure.keeps[0] else text.lstrip()
        return text if structure.keeps[1] else text.rstrip()

    def _structure(self, roles: tuple[str, ...], turns: int) -> _Structure:
        if (roles, turns) not in self._structures:
            self._structures[roles, turns] = self._find_structure(roles, turns)
        return self._structures[roles, turns]

    def _find_structure(self, roles: tuple[str, ...], turns: int) -> _Structure:
        prompt = _split_marks(self._skeleton(roles, True), len(roles))
        all_roles = _all_roles(roles, turns)
        whole = _split_marks(self._skeleton(all_roles, False), len(all_roles))
        generation = prompt[-1] if isinstance(prompt[-1], str) else ""
        if turns > 1 and whole[: len(prompt) - 1] != prompt[:-1]:
            raise UserError("it moves text when turns are added, so that turns cannot share a prompt")
        around = [whole.index(len(roles) + k) for k in range(2 * turns - 1)]  # answers and later questions
        before = [str(whole[at - 1]) for at in around[::2]]
        after = [str(whole[at + 1]) for at in around[::2]]
        end = self._end(after[-1])
        keeps = self._written(all_roles, False, len(all_roles) - 1, " \tx\t ")
        return _Structure(
            prompt=tuple(prompt),
            before=tuple(text[len(generation) :] if text.startswith(generation) else "" for text in before),
            between=tuple(
                (head.removeprefix(end), generation if tail.startswith(generation) else tail)
                for head, tail in zip(after[:-1], before[1:], strict=True)
            ),
            end=end,
            keeps=(keeps.startswith(" "), keeps.endswith(" ")),
        )

    def _end(self, tail: str) -> str:
        """The end of a turn: up to the first special token that the template writes after an answer."""
        match = self.specials.search(tail)
        return end_of_text(self.tokenizer) if match is None else tail[: match.end()]

    def _skeleton(self, roles: tuple[str, ...], generation: bool) -> str:
        if (roles, generation) not in self._skeletons:
            marks = [_mark(i) for i in range(len(roles))]
            self._skeletons[roles, generation] = self._apply(marks, roles, generation)
        return self._skeletons[roles, generation]

    def _written(self, roles: tuple[str, ...], generation: bool, index: int, content: str) -> str:
        """What the template makes of the content of message `index`: itself, stripped, or rewritten."""
        skeleton = self._skeleton(roles, generation)
        prefix, suffix = skeleton.split(_mark(index))
        contents = [content if i == index else _mark(i) for i in range(len(roles))]
        text = self._apply(contents, roles, generation)
        if not (text.startswith(prefix) and text.endswith(suffix)) or len(text) < len(prefix) + len(suffix):
            raise UserError(
                f"what it writes around a {roles[index]} message depends on the message's content"
            )
        return text[len(prefix) : len(text) - len(suffix)]

    def _apply(self, contents: Sequence[str], roles: tuple[str, ...], generation: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        return str(text)


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's end-of-text token, which ends answers where no chat template says otherwise."""
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-text token (eos_token), with which answers end.")
    return tokenizer.eos_token


def _mark(index: int) -> str:
    """Stands for the content of message `index`; characters of the private use area, in no template."""
    return f"\ue000{index}\ue001"


def _split_marks(skeleton: str, messages: int) -> list[str | int]:
    """Text, mark, text, mark, …, text."""
    parts: list[str | int] = re.split("\ue000(\\d+)\ue001", skeleton)  # type: ignore[assignment]
    parts[1::2] = [int(mark) for mark in parts[1::2]]
    if sorted(parts[1::2]) != list(range(messages)):
        raise UserError("it drops or repeats a message")
    return parts


def _all_roles(roles: tuple[str, ...], turns: int) -> tuple[str, ...]:
    return (*roles, *(("assistant", "user") * turns)[: 2 * turns - 1])


def _lead(before: str, answers: Sequence[str]) -> tuple[str, str]:
    """What a template writes before answers, as (part of the prompt, part of each answer)."""
    if not before.strip():
        return "", before
    opening = before.split()[0]
    brought = any(answer.lstrip().startswith(opening) for answer in answers)
    return ("", "") if brought else (before, "")


def _fit(message: Message, written: str) -> list[Fragment]:
    """The message's fragments, cut to what the template has written of them."""
    content = message.content
    if written == content:
        return list(message.fragments)
    fragments = list(message.fragments)
    start = content.find(written) if written and written in (content.lstrip(), content.strip()) else 0
    if written not in (content.lstrip(), content.rstrip(), content.strip()):
        if any(fragment.kind != "text" for fragment in fragments):
            raise UserError(f"it rewrites a {message.role} message that holds context")
        return [Fragment(written, "text")]
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
