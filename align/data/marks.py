"""Marks in messages, by which it is known where a template has written what.

With the mark ⟨0⟩ inside `Why so?` a template that writes `<|im_start|>user⏎Why⟨0⟩ so?<|im_end|>` has written the
content three characters before the mark.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Chat = Sequence[Mapping[str, Any]]  # messages as a template receives them
# whole: all that a message says · reasoning, answer: the two parts of an answer that thinks · name: of a function
Part = Literal["whole", "reasoning", "answer", "name"]
TOOLS = -1  # stands for the number of a message where a stretch is of the tools


class Stretch(NamedTuple):
    """A part of a message whose place in the text is wanted.

    Attributes:
        message: its number.
        path: of the string in it: `("content",)`, `("tool_calls", 0, "function", "name")`.
        start: first character in that string; the stretch has no white space around it.
        stop: the character after its last.
        part: what it is.
    """

    message: int
    path: tuple[str | int, ...]
    start: int
    stop: int
    part: Part

    def string(self, chat: Chat, tools: Sequence[Any] | None) -> str:
        """The string that it is a part of."""
        value: Any = tools if self.message == TOOLS else chat[self.message]
        for step in self.path:
            value = value[step]
        return str(value)


@dataclass(frozen=True)
class Place:
    """Where a stretch stands in the rendered text.

    Attributes:
        mark: a character of it; of several, as a template that repeats it writes, the last one's.
        count: how often it was written.
        span: `(start, stop)` in the text, with the white space around it that the template has kept (white space
            beside tags of reasoning is theirs); None where it was rewritten.
        of_string: `(start, stop)` of the same in the message's string.
    """

    mark: int
    count: int
    span: tuple[int, int] | None
    of_string: tuple[int, int]


class Found(NamedTuple):
    """A rendering without its marks, and at which character each of them stood."""

    text: str
    at: dict[int, list[int]]

    def special_texts(self, lengths: Mapping[int, int]) -> tuple[tuple[int, int], ...]:
        """`(start, stop)` of texts of special tokens that messages brought, increasing; `lengths` as in `Marks`."""
        return tuple(sorted((at - 1, at - 1 + n) for i, n in lengths.items() for at in self.at.get(i, ())))

    def place(self, content: str, stretch: Stretch, offset: int, mark: int) -> Place | None:
        """Where a stretch of `content` stands, whose mark of this number is `offset` characters into it."""
        at = self.at.get(mark)
        if not at:
            return None
        start = at[-1] - offset
        stop = start + stretch.stop - stretch.start
        if not self.text.startswith(content[stretch.start : stretch.stop], max(start, 0)) or start < 0:
            return Place(at[-1], len(at), None, (0, 0))
        first, last = stretch.start, stretch.stop
        if stretch.part == "whole":
            while (
                first
                and content[first - 1].isspace()
                and start
                and self.text[start - 1] == content[first - 1]
            ):
                first, start = first - 1, start - 1
        if stretch.part in ("whole", "answer"):
            while content[last : last + 1].isspace() and self.text[stop : stop + 1] == content[last]:
                last, stop = last + 1, stop + 1
        return Place(at[-1], len(at), (start, stop), (first, last))


class Marks:
    """Puts numbered marks into messages, and takes them out of what was rendered.

    Args:
        guard: text that no message holds, and that does not begin with a digit or end with one.
        specials: texts that get a mark after their first character, so that they are known as content; None: none.
        share: where in a stretch its mark stands, 0 … 1.
        trusted: characters of strings, by their path from the message's number on, where such a text stays as it is:
            the tags around reasoning.
    """

    def __init__(
        self,
        guard: str,
        specials: re.Pattern[str] | None,
        share: float,
        trusted: Mapping[tuple[str | int, ...], frozenset[int]],
    ) -> None:
        self.guard, self.specials, self.share, self.trusted = guard, specials, share, trusted
        self.offsets: dict[int, int] = {}  # of a stretch's mark in the stretch
        self.lengths: dict[int, int] = {}  # of the special token's text that a mark stands in

    def dress(
        self, chat: Chat, stretches: Sequence[Stretch], tools: Sequence[Any] | None
    ) -> tuple[list[Any], list[Any] | None]:
        """The messages and the tools with a mark in each stretch."""
        inside: dict[tuple[str | int, ...], dict[int, str]] = {}
        for i, stretch in enumerate(stretches):
            self.offsets[i] = round((stretch.stop - stretch.start) * self.share)
            own = inside.setdefault((stretch.message, *stretch.path), {})
            own[stretch.start + self.offsets[i]] = self._mark(i)
        self._next = len(stretches)
        dressed = [
            {
                name: value if name == "role" else self._marked(value, inside, (place, name))
                for name, value in message.items()
            }
            for place, message in enumerate(chat)
        ]
        own_tools = [self._marked(tool, inside, (TOOLS, i)) for i, tool in enumerate(tools or ())]
        return dressed, own_tools or None

    def _marked(
        self,
        value: Any,
        inside: Mapping[tuple[str | int, ...], Mapping[int, str]],
        path: tuple[str | int, ...],
    ) -> Any:
        """A value with marks in its strings: those of `inside` by their path, and one in each special token's text."""
        if isinstance(value, str):
            marks = dict(inside.get(path, {}))
            trusted = self.trusted.get(path, frozenset())
            for match in self.specials.finditer(value) if self.specials else ():
                if match.start() in trusted:
                    continue
                self.lengths[self._next] = len(match.group())
                at = match.start() + 1
                marks[at] = marks.get(at, "") + self._mark(self._next)
                self._next += 1
            return _inserted(value, marks) if marks else value
        if isinstance(value, Mapping):
            return {
                self._marked(name, {}, ()): self._marked(item, inside, (*path, name))
                for name, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self._marked(item, inside, (*path, i)) for i, item in enumerate(value)]
        return value

    def _mark(self, number: int) -> str:
        return f"{self.guard}{number}{self.guard}"

    def read(self, text: str) -> Found:
        """The text without its marks, and where they were."""
        pieces = re.split(f"{self.guard}([0-9]+){self.guard}", text)
        at: dict[int, list[int]] = {}
        length = 0
        for piece, mark in zip(pieces[::2], pieces[1::2], strict=False):
            length += len(piece)
            at.setdefault(int(mark), []).append(length)
        return Found("".join(pieces[::2]), at)


def _inserted(text: str, marks: Mapping[int, str]) -> str:
    """The text with strings put in before the characters of these numbers."""
    pieces, last = [], 0
    for at in sorted(marks):
        pieces += [text[last:at], marks[at]]
        last = at
    return "".join([*pieces, text[last:]])
