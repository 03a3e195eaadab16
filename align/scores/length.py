"""How long an answer is, how long it was asked to be, and the score of the one against the other."""

from __future__ import annotations

import re

# A Chinese, Japanese or Korean character is a word of its own; the rest is counted by spaces and letters.
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_LATIN = re.compile(r"\b[a-zA-Z]+\b")

_SCALE = {"": 1, "百": 100, "千": 1_000, "k": 1_000, "万": 10_000, "萬": 10_000}
_DIGITS = r"\d{1,3}(?:[,，]\d{3})+|\d+(?:\.\d+)?"
_UNIT = r"(?:[- ]?words?\b|\s*个?[字词](?!符))"
# `500-800 words`, `between 500 and 800 words`: two lengths, so not one that an answer could meet.
_RANGE = re.compile(
    rf"(?P<low>{_DIGITS})\s*(?P<low_scale>[kK千万萬]?)\s*(?:-|–|—|~|～|至|到|to|and|or)\s*"
    rf"(?P<high>{_DIGITS})\s*(?P<high_scale>[kK千万萬]?){_UNIT}",
    re.IGNORECASE,
)
_STATED = re.compile(rf"(?<![\d.,])(?P<number>{_DIGITS})\s*(?P<scale>[kK千万萬]?){_UNIT}", re.IGNORECASE)
_CHINESE_NUMBER = re.compile(r"(?P<digit>[一二两兩三四五六七八九])(?P<scale>[百千万萬])\s*个?[字词](?!符)")
_CHINESE_DIGITS = {
    "一": 1,
    "二": 2,
    "两": 2,
    "兩": 2,
    "三": 3,
    "四": 4,
    "五": 5,
    "六": 6,
    "七": 7,
    "八": 8,
    "九": 9,
}


def count_words(text: str) -> int:
    r"""CJK characters count one each, plus the matches of `\b[a-zA-Z]+\b` (LongBench-Write, arXiv 2408.07055)."""
    return len(_CJK.findall(text)) + len(_LATIN.findall(text))


def length_score(required: int, written: int) -> float:
    """LongWriter's S_l, 0 … 100 (arXiv 2408.07055, section 4.1).

    With x = `required` and y = `written` words: `100·max(0, 1 − (y/x − 1)/3)` where y > x, else
    `100·max(0, 1 − (x/y − 1)/2)`; 0 where nothing is written. So it is 0 from four times the length on, and
    at a third of it.

    Raises:
        ValueError: `required` is not positive, or `written` is negative.
    """
    if required <= 0 or written < 0:
        raise ValueError(f"a length score needs required > 0 and written ≥ 0, not {required} and {written}")
    if written == 0:
        return 0.0
    if written > required:
        return 100 * max(0.0, 1 - (written / required - 1) / 3)
    return 100 * max(0.0, 1 - (required / written - 1) / 2)


def stated_lengths(prompt: str) -> list[int]:
    """Every length in words that the prompt states, in order; both ends of a range.

    Read are digits before `word(s)` or 字 (`1,000 words`, `a 500-word essay`, `3k words`, `2000字`, `1.5万字`) and one
    Chinese numeral with 百, 千 or 万 (`三千字`). Other units (paragraphs, pages, minutes) are not lengths in words.
    """
    found: dict[int, list[int]] = {}
    covered: list[tuple[int, int]] = []
    for match in _RANGE.finditer(prompt):
        covered.append(match.span())
        low_scale = match["low_scale"] or match["high_scale"]
        found[match.start()] = [
            _number(match["low"], low_scale),
            _number(match["high"], match["high_scale"]),
        ]
    for match in _STATED.finditer(prompt):
        if not any(start <= match.start() < stop for start, stop in covered):
            found[match.start()] = [_number(match["number"], match["scale"])]
    for match in _CHINESE_NUMBER.finditer(prompt):
        found[match.start()] = [_CHINESE_DIGITS[match["digit"]] * _SCALE[match["scale"]]]
    return [length for start in sorted(found) for length in found[start] if length > 0]


def required_length(prompt: str) -> int | None:
    """The one length that the prompt states; None where it states none, several or a range.

    The same length said twice is one (minimum tuning, arXiv 2410.10210, keeps prompts that state exactly one).
    """
    lengths = set(stated_lengths(prompt))
    return lengths.pop() if len(lengths) == 1 else None


def _number(digits: str, scale: str) -> int:
    return round(float(re.sub("[,，]", "", digits)) * _SCALE[scale.lower()])
