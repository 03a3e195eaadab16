"""AgentWrite's plans: `Paragraph N - Main Point: … - Word Count: …`, one step a line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARKS = r"[\s#*>_\-•\"'“‘(\[]*"
_PARAGRAPH = re.compile(
    rf"^{_MARKS}(?:paragraph|段落|第)\s*(?P<number>\d{{1,3}})\s*(?:段落?)?", re.IGNORECASE
)
_POINT = re.compile(r"(?:main\s+points?|key\s+points?|主要内容|要点)\s*[*_]*\s*[:：]", re.IGNORECASE)
_COUNT = re.compile(
    r"(?:word\s+count|words|字数)\s*[*_]*\s*[:：]\s*[*_\[(]*\D{0,20}?(?P<low>\d{1,3}(?:[,，]\d{3})+|\d+)"
    r"(?:\s*(?:-|–|—|~|to|至|到)\s*(?P<high>\d{1,3}(?:[,，]\d{3})+|\d+))?",
    re.IGNORECASE,
)
_COUNT_LABEL = re.compile(r"[\s\-–—;,.|(\[*_]*(?:word\s+count|words|字数)\s*[*_]*\s*[:：]", re.IGNORECASE)
_EDGES = ' \t*_-–—:：;,|[]()"“”'


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
    """The plan's steps in order, or None where there is none that starts with paragraph 1.

    A step begins with a line that is headed `Paragraph N` with the N that is due and ends before the next. Marks of
    Markdown, brackets, other dashes, wrapped lines, and ranges of words (their middle counts) are taken. The
    plan ends where the numbering breaks off, or with a step that says nothing.
    """
    blocks: list[list[str]] = []
    for line in text.splitlines():
        match = _PARAGRAPH.match(line)
        if match and int(match["number"]) == len(blocks) + 1:
            blocks.append([line[match.end() :]])
        elif match:
            break
        elif blocks and line.strip():
            blocks[-1].append(line)
    steps: list[Step] = []
    for block in blocks:
        step = _step(" ".join(part.strip() for part in block))
        if step is None:
            break
        steps.append(step)
    return steps or None


def render_plan(steps: Sequence[Step]) -> str:
    """The plan as text, in the form that it was asked for."""
    return "\n".join(render_step(number, step) for number, step in enumerate(steps, start=1))


def render_step(number: int, step: Step) -> str:
    """One line of the plan."""
    count = "" if step.words is None else f" - Word Count: {step.words} words"
    return f"Paragraph {number} - Main Point: {step.point}{count}"


def with_lengths(steps: Sequence[Step], required: int | None, *, least: int, most: int) -> list[Step]:
    """Steps that all have a word count within `least` … `most`, adding up to what is required where they can.

    A step without a count gets the mean of those that have one, else its share of `required`, else `least`. Where a
    length is required, counts are scaled to it: a plan that promises half of it would be followed to half.

    Args:
        steps: at least one.
        required: words of the whole answer; None leaves the plan's own counts.
        least: words of a step, at least.
        most: and at most.
    """
    known = [step.words for step in steps if step.words]
    share = required / len(steps) if required else least
    usual = sum(known) / len(known) if known else share
    counts = [step.words or usual for step in steps]
    scale = required / sum(counts) if required else 1.0
    return [
        Step(step.point, min(most, max(least, round(count * scale))))
        for step, count in zip(steps, counts, strict=True)
    ]


def is_step_line(line: str) -> bool:
    """Whether a line repeats a step of the plan, which belongs to no answer."""
    return bool(_PARAGRAPH.match(line) and (_POINT.search(line) or _COUNT.search(line)))


def _step(text: str) -> Step | None:
    count = _COUNT.search(text)
    label = _COUNT_LABEL.search(text)
    start = _POINT.search(text)
    point = text[start.end() if start else 0 : label.start() if label else len(text)]
    point = re.sub(r"\s+", " ", point).strip(_EDGES)
    if not point:
        return None
    return Step(point, _words(count) if count else None)


def _words(match: re.Match[str]) -> int | None:
    """The count, the middle of a range; None for 0."""
    numbers = [int(re.sub("[,，]", "", digits)) for digits in match.group("low", "high") if digits]
    return round(sum(numbers) / len(numbers)) or None
