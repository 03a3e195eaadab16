"""How long an answer is, how long it was asked to be, and the score of the one against the other."""

from __future__ import annotations

import re

from align.scores.stated import Stated, find_lengths, whole_length

# A Chinese, Japanese or Korean character is a word of its own; the rest is counted by spaces and letters.
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_PUBLISHED_CJK = re.compile(r"[\u4e00-\u9fff]")
_LATIN = re.compile(r"\b[a-zA-Z]+\b")


def count_words(text: str) -> int:
    r"""Chinese, Japanese and Korean characters count one each, plus the matches of `\b[a-zA-Z]+\b`.

    As LongBench-Write counts (see `count_words_published`), with kana, Hangul and the rarer Chinese characters too.
    """
    return len(_CJK.findall(text)) + len(_LATIN.findall(text))


def count_words_published(text: str) -> int:
    r"""LongBench-Write's own count (arXiv 2408.07055): characters U+4E00 to U+9FFF, plus matches of `\b[a-zA-Z]+\b`.

    Japanese kana and Korean count nothing; in Chinese and English both counts agree.
    """
    return len(_PUBLISHED_CJK.findall(text)) + len(_LATIN.findall(text))


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
    """Every length in words that the prompt states, in order; both ends of a range; a part's length as it stands.

    Read are numbers before `word(s)` or 字, in the forms of `align.scores.numerals` (`1,000 words`, `a 500-word
    essay`, `1.5k words`, `2,000+ words`, `fifteen hundred words`, `2000字`, `1万2千字`, `一千五百字`), and behind a
    label (`word count: 800`, `字数：2000`). Other units (paragraphs, pages, minutes) are not lengths in words; neither
    are numbers in words below twenty (`in two words`), and `几千字`, which state none.
    """
    return [length for stated in find_lengths(prompt) for length in stated.values]


def required_length(prompt: str) -> int | None:
    """The one length of the whole answer that the prompt states; None where it states none, several or a range.

    The same length said twice is one (minimum tuning, arXiv 2410.10210, keeps prompts that state exactly one). A
    length of each part counts times the number of parts, where the prompt states it: `five paragraphs of 100 words
    each` and `五篇日记，每篇400字`; where it does not, no length is known.
    """
    lengths = {_whole(prompt, stated) for stated in find_lengths(prompt)}
    return lengths.pop() if len(lengths) == 1 else None


def _whole(prompt: str, stated: Stated) -> int | None:
    return whole_length(prompt, stated) if len(stated.values) == 1 else None
