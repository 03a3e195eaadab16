"""Numbers as prompts write them: `1,500`, `1.5k`, `1万2千`, `一千五百`, `fifteen hundred`."""

from __future__ import annotations

import re
import unicodedata

MOST = 10**9  # a larger number is no length
_UNITS = "十百千拾佰仟"
_MYRIADS = "万萬亿億"
_DIGIT_CHARACTERS = "〇零一二两兩三四五六七八九壹贰貳叁參肆伍陆陸柒捌玖"
CHINESE = _DIGIT_CHARACTERS + _UNITS + _MYRIADS
_VALUES = {c: 2 if c == "两" else int(unicodedata.numeric(c)) for c in CHINESE}

# Groups of thousands by comma, apostrophe, space or point; a point that groups has no digit but three behind it.
# Every repetition has an end, so that no prompt takes more time than its length.
ARABIC = r"(?:[1-9]\d{0,2}(?:[,，'’ ]\d{3}){1,3}(?!\d)|[1-9]\d{0,2}(?:\.\d{3}){1,3}(?![\d.])|\d{1,12}(?:\.\d{1,6})?)"
# Chinese numerals, Arabic digits among them: 一千五百, 1.5万, 1万2千, 3千五百.
CJK_NUMERAL = (
    rf"(?:{ARABIC}\s?(?=[{_UNITS}{_MYRIADS}])|[{CHINESE}]\s?(?=\d)|[{CHINESE}]){{1,20}}(?:{ARABIC})?"
)

_SMALL = (
    *(
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
    ),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000}
_WORDS = {name: i for i, name in enumerate(_SMALL)} | {name: 10 * i for i, name in enumerate(_TENS, start=2)}
_ANY_WORD = "|".join(sorted([*_WORDS, *_SCALES], key=len, reverse=True))
ENGLISH_NUMERAL = (
    rf"(?:(?:an?\s+(?=hundred|thousand))?(?:{_ANY_WORD})(?:(?:\sand\s|[\s-])(?:{_ANY_WORD})){{0,9}})"
)
SCALES = {"": 1, "k": 1_000, **_SCALES}


def read_arabic(text: str, *, scaled: bool = False) -> float:
    """`1,500`, `1 500`, `1'500` and `1.500` are 1,500; `1.5` is one and a half, as is `1.500` where a scale follows."""
    plain = re.sub(r"[,，'’\s]", "", text)
    if not scaled and re.fullmatch(r"[1-9]\d{0,2}(?:\.\d{3})+", plain):
        plain = plain.replace(".", "")
    return float(plain)


def read_english(text: str) -> int | None:
    """A number in words: `fifteen hundred`, `two thousand five hundred and ten`; None where it is none."""
    names = re.findall(r"[a-z]+", text.casefold())
    total = group = 0
    known = False
    for name in names:
        if name in _WORDS:
            group += _WORDS[name]
        elif name == "hundred":
            group = max(1, group) * 100 if known or names[0] in ("a", "an") else 0
        elif name in _SCALES:
            total, group = total + (group or int(names[0] in ("a", "an"))) * _SCALES[name], 0
        known = known or name in _WORDS
    return total + group or None


def read_chinese(text: str) -> float | None:
    """The value of a Chinese numeral, with Arabic digits anywhere in it; None where it is none.

    Each section below 10,000 falls from 千 to 百 to 十; 万 and 亿 multiply what stands before them. A last digit alone
    counts in tenths of the unit before it, as people speak: 一千五 is 1,500 and 一千零五 is 1,005. Digits without any
    unit are read by place: 一五〇〇. 千字 and 几千字 state no number.
    """
    parts = re.findall(rf"{ARABIC}|[{CHINESE}]", re.sub(r"(?<=\d) (?!\d)|(?<!\d) ", "", text))
    if all(part in _DIGIT_CHARACTERS for part in parts):
        return _by_place(parts)
    total, section = 0.0, 0.0
    digit: float | None = None  # that waits for its unit
    unit, myriad, zero = 10_000, 10**9, False  # the last ones met: what follows has to be smaller
    for part in parts:
        value = _VALUES.get(part)
        if part in "〇零":
            zero = True
            if digit is not None:
                return None
        elif value is None or value < 10:
            if digit is not None:
                return None
            digit = read_arabic(part, scaled=True) if value is None else float(value)
        elif value < 10_000:
            if value >= unit or (digit is None and (value != 10 or (section and not zero and unit < 100))):
                return None
            section += (1 if digit is None else digit) * value
            digit, unit, zero = None, value, False
        else:
            section += digit or 0
            if value >= myriad or not section:
                return None
            total += section * value
            section, digit, unit, myriad, zero = 0.0, None, 10_000, value, False
    last = unit if unit < 10_000 else myriad if myriad < 10**9 else 1
    return total + section + _ones(parts[-1], digit, last, zero)


def read_number(text: str) -> float | None:
    """Any of the forms above, without a scale such as `k` behind it."""
    if re.search("[A-Za-z]", text):
        return read_english(text)
    return read_chinese(text) if re.search(f"[{CHINESE}]", text) else read_arabic(text)


def approximate(text: str) -> tuple[str, str] | None:
    """The two numerals of an estimate: 两三千 is between 两千 and 三千; None where it is none."""
    digits = "一二三四五六七八九"
    for match in re.finditer(rf"([两兩{digits}])([{digits}])(?=[{_UNITS}{_MYRIADS}])", text):
        if _VALUES[match[2]] == _VALUES[match[1]] + 1:
            return tuple(text[: match.start()] + d + text[match.end() :] for d in match.groups())  # type: ignore[return-value]
    return None


def last_unit(text: str) -> str:
    """The unit that a numeral ends with, `千` of 五千; empty where it ends otherwise."""
    return text[-1] if text[-1:] in tuple(_UNITS + _MYRIADS) else ""


def _by_place(parts: list[str]) -> float | None:
    """一五〇〇 is 1,500; two digits alone, as in 三五, are no number."""
    zero = any(part in "〇零" for part in parts)
    if len(parts) == 1 or (len(parts) == 2 and not zero):
        return float(_VALUES[parts[0]]) if len(parts) == 1 else None
    return float("".join(str(_VALUES[part]) for part in parts))


def _ones(text: str, digit: float | None, unit: float, zero: bool) -> float:
    """What a last digit is worth behind a unit: 5 of 一十五 and of 一千零五, 500 of 一千五 and of 1千5."""
    if digit is None:
        return 0.0
    spoken = unit >= 100 and not zero and (text in _DIGIT_CHARACTERS or len(text) == 1)
    return digit * unit / 10 if spoken else digit
