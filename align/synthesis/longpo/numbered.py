"""Numbered questions out of what a model wrote: of `1. Who?⏎2. Why?` they are `Who?` and `Why?`."""

from __future__ import annotations

import re

# What may stand around a number at the start of a line: Markdown's marks and quotes, and a label before it.
_DECORATION = r"[\s#*>_\-•\"'“‘(\[]*"
_LABEL = r"(?:(?:question|q)\s*)?"
# A number is a marker only where a delimiter and then no digit follow: neither "3.5" nor "2019-04" is one.
_MARKER = re.compile(
    rf"{_DECORATION}{_LABEL}(?P<number>\d{{1,2}})[*_]*\s?(?:[.):、．）]|-(?=\s))(?!\d)[*_]*\s*", re.IGNORECASE
)
# In one line, a marker follows only the question mark of the question before: "…? 2. How …"
_INLINE = re.compile(r"(?<=[?？])\s+(?=[*_]*\d{1,2}[.):、．）]\s)")
_EDGES = "*_#>\"“”' \t"


def parse_numbered(text: str, count: int) -> list[str] | None:
    """The `count` questions that a model numbered 1., 2., …, or None where they cannot be told apart.

    A line starts question k only where k is the number that is due, so that a line beginning with "2019." or
    "3.5 million" goes on with the question it stands in. Each of 1 … `count` has to start a line exactly
    once, in this order; where no second line does, questions that follow each other's question marks in one
    line are taken too. What stands before 1., behind `count` + 1, and behind an empty line after a question
    is no question.

    Args:
        text: the model's words.
        count: how many were asked for.

    Returns:
        Questions as one line each, without numbers, marks and quotes around them.
    """
    lines = text.splitlines()
    starts = _starts(lines, count)
    if 1 in starts and len(starts) == 1:
        lines = [piece for line in lines for piece in _INLINE.split(line)]
        starts = _starts(lines, count)
    if [number for number in starts if number <= count] != list(range(1, count + 1)):
        return None
    ends = [*list(starts.values())[1:], len(lines)]
    questions = [_one_line(lines[start:end]) for start, end in zip(starts.values(), ends, strict=True)]
    return questions[:count] if all(map(_says_something, questions[:count])) else None


def _starts(lines: list[str], count: int) -> dict[int, int]:
    """Number → line of each question, up to `count` + 1; empty where a number that was met comes again."""
    starts: dict[int, int] = {}
    for place, line in enumerate(lines):
        match = _MARKER.match(line)
        if match is None:
            continue
        number = int(match["number"])
        if number in starts and number <= count:
            return {}  # lists inside a question: which line starts the next one is not clear
        if number == len(starts) + 1 and number <= count + 1:
            starts[number] = place
    return starts


def _one_line(lines: list[str]) -> str:
    """The question that starts with a marker and ends with its paragraph."""
    first, again = lines[0], _MARKER.match(lines[0])
    while (match := _MARKER.match(first)) and again and match["number"] == again["number"]:
        first = first[match.end() :]  # "1. 1. What …", as small models write
    kept = [first] if first.strip() else []
    for line in lines[1:]:
        if not line.strip() and kept:
            break
        kept.append(line.strip())
    joined = " ".join(part for part in kept if part.strip())
    return re.sub(r"\s+", " ", joined).strip(_EDGES)


def _says_something(question: str) -> bool:
    """Three words, or text in a script without spaces."""
    return len(question.split()) >= 3 or (len(question) >= 4 and not question.isascii())
