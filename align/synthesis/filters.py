"""What makes an answer useless, as LongPO's released data preparation has it (arXiv 2502.13922)."""

from __future__ import annotations

import re
from collections import Counter

_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+(?:['’][^\W\d_]+)*")
_LONG_WORD = re.compile(rf"[{_CJK}]|[^\W\d_{_CJK}]{{3,}}")
# How models decline. Looked for in the beginning alone: further on a text may well quote such words.
_REFUSALS = re.compile(
    r"\bas an? (?:ai|artificial intelligence|language model|large language model)\b"
    r"|\bi(?:'m| am) (?:sorry|afraid|unable|not able|not permitted|not allowed|not programmed)\b"
    r"|\bi (?:can(?:'t|not| not)|could not|couldn't|won't|am unable to) "
    r"(?:assist|help|fulfil+|provide|answer|discuss|comply|engage|support|respond)\b"
    r"|\bi do(?:n't| not) have (?:access|the ability|enough information|information)\b"
    r"|\bmy (?:guidelines|programming|training data)\b"
    r"|作为(?:一个|一名)?(?:ai|人工智能|语言模型)|抱歉|对不起|我无法|我不能",
    re.IGNORECASE,
)
REFUSAL_CHARACTERS = 200
FEWEST_LONG_WORDS = 2


def answer_problem(text: str, *, max_repetition: float) -> str | None:
    """Why an answer is useless, as a reason to count; None where it is not.

    Args:
        text: the answer.
        max_repetition: see `word_repetition`; LongPO: 0.90 for chosen answers, 0.95 for rejected ones.
    """
    if not text.strip():
        return "empty"
    if is_refusal(text):
        return "refusal"
    if len(_LONG_WORD.findall(text)) < FEWEST_LONG_WORDS:
        return f"fewer than {FEWEST_LONG_WORDS} words of 3 letters"
    if word_repetition(text) > max_repetition:
        return "repetition"
    return None


def word_repetition(text: str) -> float:
    """Share of the words whose type occurs more than once, 0 … 1; 0 without words.

    A CJK character is a word; case makes no difference.
    """
    counts = Counter(word.lower() for word in _WORD.findall(text))
    total = sum(counts.values())
    return sum(count for count in counts.values() if count > 1) / total if total else 0.0


def repeated_ngrams(text: str, *, size: int) -> float:
    """Share of the n-grams of `size` words that occur more than once, 0 … 1; 0 where there is no n-gram."""
    words = [word.lower() for word in _WORD.findall(text)]
    grams = Counter(tuple(words[i : i + size]) for i in range(len(words) - size + 1))
    total = sum(grams.values())
    return sum(count for count in grams.values() if count > 1) / total if total else 0.0


def is_refusal(text: str) -> bool:
    """Whether the answer begins by declining."""
    return _REFUSALS.search(text[:REFUSAL_CHARACTERS].replace("’", "'")) is not None
