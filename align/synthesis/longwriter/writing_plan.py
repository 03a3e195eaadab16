"""AgentWrite's plans: `Paragraph N - Main Point: … - Word Count: …`, one step a line."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from align.scores.numerals import CHINESE, read_number
from align.scores.stated import leading_length

MOST_WORDS = 20_000  # of a step: a larger count is two numbers, `200,300`, or a slip

# Every repetition is possessive or has an end, so that a line of blanks or marks takes no more time than its length.
_MARKS = r"[\s#*>_\-•\"'“‘(\[]*+"
_NUMBER_WORDS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_BEFORE = rf"^{_MARKS}(?:\d{{1,3}}[.)、]{_MARKS})?"  # a list's own number, as in `1. Paragraph 1`
# Heads of steps, one kind a plan, the likeliest first; `number` is the step's.
_HEADS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_BEFORE}(?:paragraph|段落)\s*#?(?P<number>\d{{1,3}}|(?:{_NUMBER_WORDS})\b|[{CHINESE}]{{1,4}})",
        rf"{_BEFORE}第\s*(?P<number>\d{{1,3}}|[{CHINESE}]{{1,4}}(?=\s*[段部章节節]))\s*(?:段落?|部分|章|节|節)?",
        *(
            rf"{_BEFORE}{name}\s*#?(?P<number>\d{{1,3}}|(?:{_NUMBER_WORDS})\b)"
            for name in ("section", "part", "step", "chapter")
        ),
    )
)
_NUMBERED = re.compile(rf"^{_MARKS}(?P<number>\d{{1,3}})\s*[.)、:]\s*")
_CELLS = re.compile(r"^\s*\|(?P<cells>.+)\|\s*$")
_RULE = re.compile(r"[\s:|-]+")

_POINT = re.compile(
    r"(?:main\s{1,40}+points?|key\s{1,40}+points?|主要内容|要点)[\s*_]{0,40}+[:：]", re.IGNORECASE
)
_ABOUT = (
    r"[\s*_\[(（~≈]{0,40}+"
    r"(?:(?:about|around|approximately|approx\.?|roughly|circa|ca\.|约|大约|at least)\s{0,40}+)?[~≈]?\s{0,40}+"
)
_COUNT_LABEL = re.compile(
    rf"(?P<edge>[\s\-–—;,.|(\[*_]{{0,40}}+)(?P<label>\bword\s{{1,40}}+count|\bwords|字[数數])[\s*_]{{0,40}}+[:：]{_ABOUT}",
    re.IGNORECASE,
)
_COUNT_BEHIND = re.compile(
    rf"(?P<edge>[\s\-–—;,.:：|]{{0,40}}+[(（\[]?+){_ABOUT}(?=\d|[{CHINESE}]|\b[a-z])", re.IGNORECASE
)
_UNIT = re.compile(r"\s*(?:words?\b|个?[字词])", re.IGNORECASE)
_CLOSED = re.compile(r"[\s.。;；*_)）\]|]*$")
_LONGEST = 80  # characters of a count
_EDGES = ' \t*_-–—:：;,|[]()（）"“”'


@dataclass(frozen=True)
class Step:
    """One paragraph to write.

    Attributes:
        point: what it is about, one line, not empty.
        words: how long it shall be; None where the plan does not say.
    """

    point: str
    words: int | None


def parse_plan(text: str) -> list[Step] | None:
    """The plan's steps in order, or None where there is none that starts with step 1.

    A step begins with a line that is headed `Paragraph N` (`Paragraph One`, 第一段, `Section N`, `1. Main Point:`, a
    row of a table) with the N that is due, and ends before the next; one plan has one kind of head. Marks of
    Markdown, brackets, other dashes, wrapped lines, and ranges of words (their middle counts) are taken. The plan
    ends where the numbering breaks off, or with a step that says nothing.
    """
    lines = text.splitlines()
    for head in _HEADS:
        steps = _steps(_blocks(lines, head), _step)
        if steps:
            return steps
    return _table(lines) or _steps(_blocks(lines, _NUMBERED), _labelled_step) or None


def render_plan(steps: Sequence[Step]) -> str:
    """The plan as text, in the form that it was asked for."""
    return "\n".join(render_step(number, step) for number, step in enumerate(steps, start=1))


def render_step(number: int, step: Step) -> str:
    """One line of the plan."""
    count = "" if step.words is None else f" - Word Count: {step.words} words"
    return f"Paragraph {number} - Main Point: {step.point}{count}"


def with_lengths(steps: Sequence[Step], required: int | None, *, least: int, most: int) -> list[Step]:
    """Steps that all have a word count; where a length is required, the counts add up to it.

    A step without a count gets the mean of those that have one, else its share of `required`, else `least`. Counts are
    scaled to the required length: a plan that promises half of it would be followed to half. They stay within
    `least` … `most`, and what a bound takes from one step the others get. Two lengths are out of reach: where even
    `least` words a step are more than required, steps get less, in proportion; where `most` words a step are not
    enough, each gets `most`, since a step is written in one call.

    Args:
        steps: at least one.
        required: words of the whole answer; None leaves the plan's own counts, within the bounds.
        least: words of a step, at least.
        most: and at most.
    """
    known = [step.words for step in steps if step.words]
    share = required / len(steps) if required else least
    usual = sum(known) / len(known) if known else share
    counts = [float(step.words or usual) for step in steps]
    if required is None:
        words = [min(most, max(least, round(count))) for count in counts]
    else:
        words = _adding_up(counts, required, least if least * len(steps) <= required else 1, most)
    return [Step(step.point, count) for step, count in zip(steps, words, strict=True)]


def is_step_line(line: str) -> bool:
    """Whether a line repeats a step of the plan, which belongs to no answer."""
    headed = any(head.match(line) for head in _HEADS)
    return headed and (_POINT.search(line) is not None or _split_count(line)[1] is not None)


def _blocks(lines: Sequence[str], head: re.Pattern[str]) -> list[str]:
    """The text of each step behind its head, as one line."""
    blocks: list[list[str]] = []
    for line in lines:
        match = head.match(line)
        number = read_number(match["number"]) if match else None
        if match and number == len(blocks) + 1:
            blocks.append([line[match.end() :]])
        elif match and head is not _NUMBERED:
            break
        elif blocks and line.strip():
            blocks[-1].append(line)
    return [" ".join(part.strip() for part in block) for block in blocks]


def _steps(blocks: Sequence[str], read: Callable[[str], Step | None]) -> list[Step]:
    """The steps up to the first that says nothing."""
    steps: list[Step] = []
    for block in blocks:
        step = read(block)
        if step is None:
            break
        steps.append(step)
    return steps


def _step(text: str) -> Step | None:
    """Point and count of a step; None where it says nothing."""
    start = _POINT.search(text)
    rest, words = _split_count(text[start.end() if start else 0 :])
    if words is None and start:
        words = _split_count(text[: start.start()])[1]  # `Paragraph 1 (200 words) - Main Point: …`
    point = re.sub(r"\s+", " ", rest).strip(_EDGES)
    return Step(point, words) if point else None


def _labelled_step(text: str) -> Step | None:
    """A step under a bare number, which any list has: only with a label or a count."""
    step = _step(text)
    return step if step is not None and (step.words is not None or _POINT.search(text)) else None


def _split_count(text: str) -> tuple[str, int | None]:
    """What stands before the count of words, and the count: behind the last label, else `… (200 words)` at an end."""
    for label in reversed(list(_COUNT_LABEL.finditer(text))):
        found = leading_length(text[label.end() : label.end() + _LONGEST])
        if found is not None:
            return text[: label.start()], _words(found[0])
        if label["label"].casefold() != "words":  # `Word Count: open`; words: inside a point is no label
            return text[: label.start()], None
    for match in _COUNT_BEHIND.finditer(text):
        found = leading_length(text[match.end() : match.end() + _LONGEST])
        unit = found and _UNIT.match(text, match.end() + found[1])
        if not found or not unit:
            continue
        if _CLOSED.match(text, unit.end()):
            return text[: match.start()], _words(found[0])
        if not text[: match.start()].strip(_EDGES) and re.match(r"\s*[)）\]]", text[unit.end() :]):
            return text[unit.end() :], _words(found[0])
    return text, None


def _words(values: tuple[int, ...]) -> int | None:
    """The count, the middle of a range, also of one that is written as `200,300`; None for no possible count."""
    count = round(sum(values) / len(values))
    if count > MOST_WORDS and len(values) == 1:
        low, high = divmod(count, 1000)
        return round((low + high) / 2) if 0 < low < high else None
    return count if 0 < count <= MOST_WORDS else None


def _table(lines: Sequence[str]) -> list[Step]:
    """Rows of a Markdown table whose first cell is the number that is due; the last cell with a count has the words."""
    steps: list[Step] = []
    for line in lines:
        match = _CELLS.match(line)
        if match is None or _RULE.fullmatch(line):
            continue
        first, *cells = [cell.strip(_EDGES + " ") for cell in match["cells"].split("|")]
        number = re.fullmatch(
            rf"(?:[a-z]+\s*|段落|第)?(\d{{1,3}}|{_NUMBER_WORDS})\s*[.段]?", first, re.IGNORECASE
        )
        if number is None or read_number(number[1]) != len(steps) + 1 or not cells:
            continue
        found = leading_length(re.sub(rf"^{_ABOUT}", "", cells[-1])) if len(cells) > 1 else None
        point = " ".join(cells[:-1] if found else cells).strip(_EDGES)
        if not point:
            break
        steps.append(Step(point, _words(found[0])) if found else (_step(point) or Step(point, None)))
    return steps


def _adding_up(counts: Sequence[float], required: int, least: int, most: int) -> list[int]:
    """Whole numbers in proportion to `counts`, within the bounds, whose sum is as near to `required` as these allow."""
    low, high = 0.0, most / min(counts)
    for _ in range(100):  # the sum grows with the scale, so that halving finds it
        scale = (low + high) / 2
        if sum(min(most, max(least, count * scale)) for count in counts) < required:
            low = scale
        else:
            high = scale
    exact = [min(float(most), max(float(least), count * high)) for count in counts]
    words = [int(value + 1e-6) for value in exact]
    # The largest remainders get what rounding down has left, the first steps first.
    order = sorted(range(len(words)), key=lambda i: (words[i] - exact[i], i))
    for i in order:
        if sum(words) < required and words[i] < most:
            words[i] += 1
    return words
