"""What a chat template writes around the contents of a row's messages, found out by rendering marks in their place.

A mark is a string that no template holds. With ChatML and the mark ⟨0⟩ in the place of one user's message it renders

    <|im_start|>user⏎⟨0⟩<|im_end|>⏎<|im_start|>assistant⏎

and everything but the mark is the template's own text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = " \tx\t "  # a content whose white space shows what the template strips


@dataclass(frozen=True)
class Structure:
    """The template's own text in rows whose messages have certain roles (n turns).

    With ChatML and two turns after one user message (⏎ is a line break):

    - prompt: `<|im_start|>user⏎`, 0, `<|im_end|>⏎<|im_start|>assistant⏎`
    - before: empty, twice
    - between: `⏎<|im_start|>user⏎` and `<|im_end|>⏎<|im_start|>assistant⏎`
    - end: `<|im_end|>`

    Attributes:
        prompt: text, and in the place of each content the number of its message, up to the first answer; the
            generation prompt is its end.
        before: `[n]` white space or thinking block that it writes between the generation prompt and an answer.
        between: `[n − 1]` (text before the next question, text after it up to its generation prompt).
        end: what ends an answer.
        keeps: whether it keeps an answer's leading and trailing white space.
    """

    prompt: tuple[str | int, ...]
    before: tuple[str, ...]
    between: tuple[tuple[str, str], ...]
    end: str
    keeps: tuple[bool, bool]


class TemplateReader:
    """Asks a tokenizer's chat template what it writes; every answer is asked for once and remembered.

    Args:
        tokenizer: with a chat template.
        specials: matches its special tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, specials: re.Pattern[str]) -> None:
        self.tokenizer = tokenizer
        self.specials = specials
        self._skeletons: dict[tuple[tuple[str, ...], bool], str] = {}
        self._structures: dict[tuple[tuple[str, ...], int], Structure] = {}

    def structure(self, roles: tuple[str, ...], turns: int) -> Structure:
        """What the template writes in a row.

        Args:
            roles: of the messages up to the first question.
            turns: n, answers of the row.

        Raises:
            UserError: it drops, repeats or moves what it is given.
        """
        if (roles, turns) not in self._structures:
            self._structures[roles, turns] = self._find_structure(roles, turns)
        return self._structures[roles, turns]

    def _find_structure(self, roles: tuple[str, ...], turns: int) -> Structure:
        """Compares two renderings: the prompt alone with the generation prompt, and the row with its answers."""
        prompt = _split_at_marks(self._skeleton(roles, True), len(roles))
        row_roles = roles_of_row(roles, turns)
        row = _split_at_marks(self._skeleton(row_roles, False), len(row_roles))
        if turns > 1 and row[: len(prompt) - 1] != prompt[:-1]:
            raise UserError("it moves text when turns are added, so that turns cannot share a prompt")
        answers = [row.index(len(roles) + 2 * turn) for turn in range(turns)]
        before = [str(row[at - 1]) for at in answers]
        after = [str(row[at + 1]) for at in answers]
        # Behind a question: the end of the user's turn, and the beginning of the assistant's.
        generation = str(prompt[-1])
        end = self._end_of_answer(after[-1])
        return Structure(
            prompt=tuple(prompt),
            before=tuple(text[len(generation) :] if text.startswith(generation) else "" for text in before),
            between=tuple(
                (to_question.removeprefix(end), generation if to_answer.startswith(generation) else to_answer)
                for to_question, to_answer in zip(after[:-1], before[1:], strict=True)
            ),
            end=end,
            keeps=self._kept_space(row_roles),
        )

    def _end_of_answer(self, after: str) -> str:
        """Up to and with the first special token that the template writes after an answer."""
        match = self.specials.search(after)
        return end_of_text(self.tokenizer) if match is None else after[: match.end()]

    def _kept_space(self, row_roles: tuple[str, ...]) -> tuple[bool, bool]:
        """Whether white space at the beginning and at the end of the last answer is written as it is."""
        written = self.written(row_roles, len(row_roles) - 1, _PROBE, generation=False)
        return written.startswith(" "), written.endswith(" ")

    def written(self, roles: tuple[str, ...], index: int, content: str, *, generation: bool) -> str:
        """What the template makes of one content: the same text, stripped, or rewritten.

        The messages are rendered with marks, and once more with `content` in the place of one mark. What then stands
        between the text before that mark and the text after it is what was written: of `" hello "` most templates
        write `hello`.

        Args:
            roles: of all messages.
            index: the message that has the content.
            content: its text.
            generation: whether the generation prompt follows.

        Raises:
            UserError: another content changes what stands around it.
        """
        before, after = self._skeleton(roles, generation).split(_mark(index))
        contents = [content if i == index else _mark(i) for i in range(len(roles))]
        text = self._apply(contents, roles, generation)
        around = len(before) + len(after)
        if not (text.startswith(before) and text.endswith(after)) or len(text) < around:
            raise UserError(
                f"what it writes around a {roles[index]} message depends on the message's content"
            )
        return text[len(before) : len(text) - len(after)]

    def _skeleton(self, roles: tuple[str, ...], generation: bool) -> str:
        """The rendering with a mark in the place of every content."""
        if (roles, generation) not in self._skeletons:
            marks = [_mark(i) for i in range(len(roles))]
            self._skeletons[roles, generation] = self._apply(marks, roles, generation)
        return self._skeletons[roles, generation]

    def _apply(self, contents: Sequence[str], roles: tuple[str, ...], generation: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in zip(roles, contents, strict=True)]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation)
        return str(text)


def roles_of_row(roles: tuple[str, ...], turns: int) -> tuple[str, ...]:
    """The roles of a row with its answers: after `user`, two turns add assistant, user, assistant."""
    return (*roles, *(("assistant", "user") * turns)[: 2 * turns - 1])


def end_of_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's end-of-text token, which ends answers where no chat template says otherwise."""
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no end-of-text token (eos_token), with which answers end.")
    return tokenizer.eos_token


def _mark(index: int) -> str:
    """Stands for the content of message `index`; characters of the private use area, in no template."""
    return f"\ue000{index}\ue001"


def _split_at_marks(skeleton: str, messages: int) -> list[str | int]:
    """Text, number of a message, text, number, …, text; raises UserError unless every message is there once."""
    pieces: list[str | int] = re.split("\ue000(\\d+)\ue001", skeleton)  # type: ignore[assignment]
    pieces[1::2] = [int(mark) for mark in pieces[1::2]]
    if sorted(pieces[1::2]) != list(range(messages)):
        raise UserError("it drops or repeats a message")
    return pieces
