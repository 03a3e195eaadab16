"""Lengths in words that a prompt states, where they stand, and whether they are those of a part."""

from __future__ import annotations

import re
from dataclasses import dataclass

from align.scores.numerals import (
    ARABIC,
    CHINESE,
    CJK_NUMERAL,
    ENGLISH_NUMERAL,
    MOST,
    SCALES,
    approximate,
    last_unit,
    read_arabic,
    read_number,
)

LEAST_IN_WORDS = 20  # "in two words" asks for no length
_BEFORE = 200  # characters looked at before and behind a number
# Spaces and hyphens that keep a line together, as plain ones; every replacement has one character, so that places stay.
_PLAIN = str.maketrans(
    {"\u00a0": " ", "\u202f": " ", "\u2009": " ", "\u3000": " ", "\u2010": "-", "\u2011": "-"}
)
_SCALE = r"(?:\s?[kK](?![a-zA-Z])|\s*(?:thousand|hundred|million)\b)?"
_NUMBER = rf"(?:{CJK_NUMERAL}|{ARABIC}{_SCALE}|\b{ENGLISH_NUMERAL}\b)"
_OPEN = rf"(?<![\d.,第{CHINESE}])"
_MORE = r"(?:\s*\+|\s+or\s+(?:more|less|so|fewer)|\s*[多余餘来來])?"
_UNIT = (
    rf"{_MORE}(?:[- ]?words?\b|\s*个?個?(?:中文|汉|漢)?(?:字(?![符节節母段架路军軍花])|词(?![条條组組典])))"
)
_LABEL = (
    r"(?:字[数數](?:要求|限制)?\s*+(?:[:：]|大?[为為约約是在])?\s*+(?:大?[约約]|不少于|至少|不低于)?\s*+"
    r"|\bword[ -](?:count|limit|length)\W{0,4}(?:(?:of|is|be|about|around|approximately|at least)\s+){0,3})"
)
_TO = r"\s*(?:-\s+to|-|–|—|~|～|至|到|to|and|or)\s*"
# `500-800 words`, `between 500 and 800 words`: two lengths, so not one that an answer could meet.
_RANGE = rf"(?P<low>{_NUMBER}){_TO}(?P<high>{_NUMBER})"
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"{_OPEN}{_RANGE}{_UNIT}",
        rf"{_LABEL}{_RANGE}",
        rf"{_OPEN}(?P<low>{_NUMBER}){_UNIT}",
        rf"{_LABEL}(?P<low>{_NUMBER})(?![\d%])",
    )
)
_VAGUE = re.compile(
    r"(?:[几幾]|(?<![字词總总])[数數]|worth\s)$", re.IGNORECASE
)  # 几十万字, worth a thousand words
_RATE = re.compile(r"\W*(?:per|an?|/)\s*(?:minute|second|hour)\b", re.IGNORECASE)  # a speed

_NOUN = r"[a-z]{3,}"
_OF_THEM = rf"(?:\s+of\s+(?:the|these|those|them|your))?(?:\s+(?:\d{{1,3}}|{ENGLISH_NUMERAL})\b)?"
_EACH_BEFORE = re.compile(
    rf"\b(?:each|every){_OF_THEM}(?:\s+(?P<noun>{_NOUN}))?[^.;!?\n]{{0,40}}$", re.IGNORECASE
)
_EACH_AFTER = re.compile(
    rf"\W{{0,3}}(?:(?:per|(?:for|in)\s+(?:each|every)){_OF_THEM}\s+(?P<noun>{_NOUN})|(?:per|each|apiece)\b)",
    re.IGNORECASE,
)
_SEVERAL = re.compile(rf"(?P<count>\d{{1,3}}|\b(?:{ENGLISH_NUMERAL}))\s+$", re.IGNORECASE)
_EACH_CHINESE = re.compile(r"(?:每(?:一|个|個)?(?P<noun>[^\W\d_一])|各)[^，。；！？\n]{0,8}$")
_AFTER_CHINESE = re.compile(r"(?:左右|以上|以内)?\s*[/每](?:一|个|個)?\s*(?P<noun>[^\W\d_])")
_PARTS_CHINESE = "篇章段节節部封首则條条幕集回"


@dataclass(frozen=True)
class Stated:
    """A length that a prompt states.

    Attributes:
        start: first character of its number.
        stop: behind its unit.
        values: words: one number, or both ends of a range.
    """

    start: int
    stop: int
    values: tuple[int, ...]


def find_lengths(prompt: str) -> list[Stated]:
    """Every length in words, in order; nothing is read twice."""
    text = prompt.translate(_PLAIN)
    found: dict[int, Stated] = {}
    taken: list[tuple[int, int]] = []
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            start, stop = match.start("low") + _several(match, text), match.end()
            if any(start < last and first < stop for first, last in taken):
                continue
            values = _values(text[start : match.end("low")], match.groupdict().get("high"))
            if (
                values is None
                or _one_number(match, text)
                or _VAGUE.search(text[max(0, start - _BEFORE) : start])
                or _RATE.match(text, stop)
            ):
                continue
            taken.append((start, stop))
            found[start] = Stated(start, stop, values)
    return [found[start] for start in sorted(found)]


_LEADING = re.compile(rf"(?:{_RANGE}|(?P<one>{_NUMBER}))", re.IGNORECASE)


def leading_length(text: str) -> tuple[tuple[int, ...], int] | None:
    """The number or range that a text begins with, and where it ends; its unit may be missing. None without one."""
    match = _LEADING.match(text.translate(_PLAIN))
    if match is None:
        return None
    values = _values(match["low"] or match["one"], match["high"])
    return None if values is None else (values, match.end())


def _several(match: re.Match[str], text: str) -> int:
    """Characters of a number of pieces before a length: 2 of `5 500-word essays`, 0 of `a 5 500-word essay`."""
    pieces = re.fullmatch(r"(\d{1,2} )(?!000)\d{3}", match["low"])
    several = re.match(r"\s+(?:[a-z]+\s+)?[a-z]+s\b", text[match.end() :], re.IGNORECASE)
    hyphenated = match.group().casefold().endswith("-word")
    return len(pieces[1]) if pieces and several and hyphenated else 0


def _one_number(match: re.Match[str], text: str) -> bool:
    """Whether what looks like a range is one number in words: `a hundred and fifty`, unless `between` stands before."""
    high = match.groupdict().get("high")
    joined = high and re.fullmatch(r"\s+and\s+", text[match.end("low") : match.start("high")], re.IGNORECASE)
    in_words = joined and re.search(r"(?:hundred|thousand|million)$", match["low"], re.IGNORECASE)
    return bool(
        in_words
        and not re.search(
            r"\bbetween\s+$", text[max(0, match.start("low") - _BEFORE) : match.start("low")], re.IGNORECASE
        )
    )


def whole_length(prompt: str, stated: Stated) -> int | None:
    """The length itself; of each of several parts the product; None where nobody says how many parts there are."""
    text = prompt.translate(_PLAIN)
    before = text[max(0, stated.start - _BEFORE) : stated.start]
    after = text[stated.stop : stated.stop + _BEFORE]
    several = _SEVERAL.search(before)
    hyphenated = text[stated.stop - 5 : stated.stop].casefold() == "-word"
    if several and hyphenated and re.match(r"\s+(?:[a-z]+\s+)?[a-z]+s\b", after, re.IGNORECASE):
        count = read_number(several["count"])
        return None if count is None else round(count) * stated.values[0]
    each = _EACH_AFTER.match(after) or _EACH_BEFORE.search(before)
    chinese = _AFTER_CHINESE.match(after) or _EACH_CHINESE.search(before)
    if each is None and chinese is None:
        return stated.values[0]
    counts = _english_counts(text, before, each["noun"]) if each else _chinese_counts(text, chinese)
    return counts.pop() * stated.values[0] if len(counts) == 1 else None


def _english_counts(text: str, before: str, noun: str | None) -> set[int]:
    """How many parts there are: of the noun's kind, else the last several things in the sentence before."""
    counted = rf"\b(?P<count>\d{{1,3}}|{ENGLISH_NUMERAL})[\s-]+(?:{_NOUN}\s+)?"
    if noun is not None and noun.casefold() not in ("should", "about", "with", "has", "have", "must"):
        stem = re.escape(noun.rstrip("s"))
        found = re.findall(rf"{counted}{stem}(?:s|es)?\b", text, re.IGNORECASE)
    else:
        found = re.findall(rf"{counted}{_NOUN}s\b", re.split(r"[.;!?\n]", before)[-1], re.IGNORECASE)[-1:]
    numbers = {read_number(count) for count in found}
    return {round(number) for number in numbers if number is not None and number > 1}


def _chinese_counts(text: str, each: re.Match[str] | None) -> set[int]:
    """How many parts there are: of the measure word behind 每; behind 各 of any part's."""
    noun = each.groupdict().get("noun") if each else None
    kinds = re.escape(noun) if noun else f"[{_PARTS_CHINESE}]"
    found = re.findall(rf"(?<![每第])({CJK_NUMERAL}|\d{{1,3}})\s*[个個]?{kinds}", text)
    numbers = {read_number(count) for count in found}
    return {round(number) for number in numbers if number is not None and number > 1}


def _values(low: str, high: str | None) -> tuple[int, ...] | None:
    """The words of a number, or of both ends; None where one is no number, or none that can be a length."""
    low, high = low.strip(), (high or "").strip()
    pair = None if high else approximate(low)
    if pair is not None:
        low, high = pair
    if high and not _scale(low):
        low += _scale(high)
    values = [_value(text) for text in (low, high) if text]
    whole = tuple(round(value) for value in values if value is not None and 0.5 < value <= MOST)
    return whole if whole and len(whole) == len(values) else None


def _scale(text: str) -> str:
    """What a number is multiplied by, as written: `k`, ` thousand`, 千."""
    match = re.search(r"\s*(?:k|thousand|hundred|million)$", text, re.IGNORECASE)
    return match.group() if match else last_unit(text)


def _value(text: str) -> float | None:
    """Of Arabic digits with or without a scale, of a Chinese numeral, or of words from `LEAST_IN_WORDS` on."""
    scaled = re.fullmatch(rf"({ARABIC})\s*([a-zA-Z]+)", text)
    if scaled is not None:
        return read_arabic(scaled[1], scaled=True) * SCALES[scaled[2].casefold()]
    value = read_number(text)
    in_words = re.search("[a-zA-Z]", text) is not None
    one_character = len(text) == 1 and not text.isdecimal()
    if value is not None and ((in_words and value < LEAST_IN_WORDS) or one_character):
        return None
    return value
