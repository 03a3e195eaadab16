"""Golden values of S_l, word counts and stated lengths."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.scores.length import (
    count_words,
    count_words_published,
    length_score,
    required_length,
    stated_lengths,
)


@pytest.mark.parametrize(
    ("required", "written", "score"),
    [
        (1000, 1000, 100.0),
        (1000, 2000, 100 * 2 / 3),  # 1 − (2 − 1)/3
        (1000, 500, 50.0),  # 1 − (2 − 1)/2
        (1000, 4000, 0.0),
        (1000, 3999, 100 / 3000),  # 1 − 2.999/3
        (3000, 1000, 0.0),  # a third of it: 1 − (3 − 1)/2
        (1000, 0, 0.0),
        (1000, 100_000, 0.0),
    ],
)
def test_golden_values(required, written, score):
    assert length_score(required, written) == pytest.approx(score, abs=1e-9)


def test_nothing_required_is_no_score():
    with pytest.raises(ValueError, match="required > 0"):
        length_score(0, 10)


@given(st.integers(1, 10**6), st.integers(0, 10**7))
def test_the_score_is_best_at_the_required_length(required, written):
    assert 0 <= length_score(required, written) <= 100
    closer = written + (written < required) - (written > required)
    assert length_score(required, closer) >= length_score(required, written)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        (
            "It's 3 o'clock, again.",
            5,
        ),  # It s o clock again: the pattern ends at an apostrophe, digits are none
        ("长上下文 needs 记忆", 7),
        ("字abc", 1),  # no word boundary between the two, as in the released pattern
        ("カタカナ、ひらがな。한글", 10),
        ("\u3400\uf900", 2),
    ],
)
def test_words(text, words):
    assert count_words(text) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [("长上下文 needs 记忆", 7), ("カタカナ、ひらがな。한글 \u3400\uf900", 0), ("한글 in two words", 3)],
)
def test_words_as_longbench_write_counts_them(text, words):
    """Characters U+4E00 … U+9FFF and Latin words, nothing else."""
    assert count_words_published(text) == words


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("Write a 1,000-word essay.", [1000]),
        ("about 2000 words; yes, 2000 words!", [2000, 2000]),
        ("A 3k words report of 2 pages", [3000]),
        ("between 500 and 800 words", [500, 800]),
        ("500–800 words", [500, 800]),
        ("写一篇1.5万字的小说，每章三千字，开头八百字", [15000, 3000, 800]),
        ("300词的作文，100字符的标题", [300]),
        ("The war of 1914 in five chapters of 3.5 pages", []),
        ("Use the word 20 times.", []),
    ],
)
def test_stated_lengths(prompt, lengths):
    assert stated_lengths(prompt) == lengths


def test_exactly_one_length():
    assert required_length("about 2000 words; yes, 2000 words!") == 2000
    assert required_length("500-800 words") is None
    assert required_length("an essay") is None


@pytest.mark.skipif("ALIGN_DATA" not in os.environ, reason="ALIGN_DATA is not set")
def test_the_lengths_that_people_have_read_in_real_prompts():
    """All 48 of LongWrite-Ruler. Of LongBench-Write's 120 at least 114: the others state none, or a range."""
    folder = Path(os.environ["ALIGN_DATA"]) / "longbench_write"

    def right(name: str) -> int:
        rows = [json.loads(line) for line in (folder / name).read_text().splitlines()]
        return sum(required_length(row["prompt"]) == row["length"] for row in rows)

    assert right("longwrite_ruler.jsonl") == 48
    assert right("longbench_write.jsonl") >= 114
