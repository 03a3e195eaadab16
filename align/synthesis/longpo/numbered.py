"""Numbered questions out of what a model wrote: of `1. Who?⏎2. Why?` they are `Who?` and `Why?`."""

from __future__ import annotations

import re
import unicodedata

# What may stand around a number at the start of a line: Markdown's marks and quotes, and a label before it.
_DECORATION = r"[\s#*>_\-•\"'“‘(\[]*+"
_LABEL = r"(?:(?:question|q|问题|問題|第)\s*#?)"
_WORDS = "one|two|three|four|five|six|seven|eight|nine|ten"
# A number is a marker only where a delimiter and then no digit follow: neither "3.5" nor "2019-04" is one. Behind a
# label, a number in words and the line's end will do; a heading may be a number alone, and ① needs nothing.
_MARKER = re.compile(
    rf"{_DECORATION}(?:"
    rf"{_LABEL}?(?P<number>\d{{1,2}})[题題]?[*_]*\s?\\?(?:[.):：、．）]|-(?=\s))(?!\d)"
    rf"|{_LABEL}(?P<labelled>\d{{1,2}}|(?:{_WORDS})\b|[一二三四五六七八九十])[题題]?[*_]*\s*(?:[.):：、．）-]|$)"
    rf"|(?P<chinese>[一二三四五六七八九十])[、．.](?=\D)"
    rf"|(?P<circled>[①②③④⑤⑥⑦⑧⑨⑩])"
    rf")[*_]*\s*",
    re.IGNORECASE,
)
_HEADING = re.compile(r"\s*#+\s*[*_]*(?P<number>\d{1,2})[*_]*\s*$")
_BULLET = re.compile(r"\s*[-*•–·+]\s++(?P<text>.*[?？].*)$")
# In one line, a marker follows only the question mark of the question before: "…? 2. How …"
_INLINE = re.compile(r"(?<=[?？])\s+(?=[*_]*\d{1,2}[.):、．）]\s)")
_EDGES = "*_#>\"“”' \t"


def parse_numbered(text: str, count: int) -> list[str] | None:
    """The `count` questions that a model numbered 1., 2., …, or None where they cannot be told apart.

    A line starts question k only where k is the number that is due, so that a line beginning with "2019." or
    "3.5 million" goes on with the question it stands in. Each of 1 … `count` has to start a line exactly
    once, in this order; where no second line does, questions that follow each other's question marks in one
    line are taken too, and where no number stands at all, a list of exactly `count` bullets that each ask something.
    What stands before 1., behind `count` + 1, and behind an empty line after a question is no question.

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
    if not starts and not any(map(_number, lines)):
        return _bullets(lines, count)
    if [number for number in starts if number <= count] != list(range(1, count + 1)):
        return None
    ends = [*list(starts.values())[1:], len(lines)]
    questions = [_one_line(lines[start:end]) for start, end in zip(starts.values(), ends, strict=True)]
    return questions[:count] if all(map(_says_something, questions[:count])) else None


def _starts(lines: list[str], count: int) -> dict[int, int]:
    """Number → line of each question, up to `count` + 1; empty where a number that was met comes again."""
    starts: dict[int, int] = {}
    for place, line in enumerate(lines):
        number = _number(line)
        if number is None:
            continue
        if number in starts and number <= count:
            return {}  # lists inside a question: which line starts the next one is not clear
        if number == len(starts) + 1 and number <= count + 1:
            starts[number] = place
    return starts


def _number(line: str) -> int | None:
    """The number that a line is marked with."""
    match = _MARKER.match(line) or _HEADING.match(line)
    if match is None:
        return None
    text = next(value for value in match.groupdict().values() if value)
    words = _WORDS.split("|")
    if text.casefold() in words:
        return words.index(text.casefold()) + 1
    return int(unicodedata.numeric(text)) if len(text) == 1 else int(text)


def _bullets(lines: list[str], count: int) -> list[str] | None:
    """The questions of an unnumbered list, where it has as many as were asked for."""
    found = [match["text"].strip().strip(_EDGES) for line in lines if (match := _BULLET.match(line))]
    return found if len(found) == count and all(map(_says_something, found)) else None


def _one_line(lines: list[str]) -> str:
    """The question that starts with a marker and ends with its paragraph."""
    first, again = lines[0], _number(lines[0])
    while _number(first) == again and (match := _MARKER.match(first) or _HEADING.match(first)):
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
