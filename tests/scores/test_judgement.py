"""S_q: marks out of what a judge writes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.scores.judgement import DIMENSIONS, JUDGE_PROMPT, parse_judgement, quality_score

MARKS = dict(zip(DIMENSIONS, (5, 4, 3, 2, 1, 3), strict=True))


def test_the_score_is_the_mean_of_marks_on_a_scale_to_100():
    """(4 + 3 + 2 + 1 + 0 + 2)·25 / 6 = 50."""
    assert quality_score(MARKS) == pytest.approx(50.0)
    assert quality_score(dict.fromkeys(DIMENSIONS, 5)) == 100.0
    assert quality_score(dict.fromkeys(DIMENSIONS, 1)) == 0.0


@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "Strong in {{parts}}, weak in others.\n```json\n{}\n```",
        '{{"Relevance": 1}} and then, after more thought: {} That is all.',
    ],
)
def test_the_last_whole_object_counts(form):
    assert parse_judgement(form.format(json.dumps(MARKS))) == MARKS


def test_keys_and_marks_in_other_spellings():
    text = json.dumps(
        {"relevance": "5", "ACCURACY": 4.0, "coherence": "3/5", "Clarity": 2, "breadth_&_depth": 1}
        | {"Reading-experience": "3.0"}
    )
    assert parse_judgement(text) == MARKS


@pytest.mark.parametrize(
    "marks",
    [
        {name: mark for name, mark in MARKS.items() if name != "Clarity"},
        MARKS | {"Clarity": 6},
        MARKS | {"Clarity": 0},
        MARKS | {"Clarity": 2.5},
        MARKS | {"Clarity": True},
        MARKS | {"Clarity": None},
        MARKS | {"Clarity": "good"},
        MARKS | {"Clarity": float("nan")},
    ],
)
def test_a_missing_or_impossible_mark_is_no_judgement(marks):
    assert parse_judgement(json.dumps(marks)) is None


def test_line_breaks_inside_strings_are_read():
    """The released code takes all line breaks out before it reads; a judge that explains itself breaks lines."""
    text = '{"Analysis": "It is good,\nbut long.", ' + json.dumps(MARKS)[1:]
    assert parse_judgement(text) == MARKS


def test_any_number_is_a_mark_where_the_published_prompt_is_used():
    """(4.5 + 0 + 3 + 2 + 1 + 3 − 6)·25 / 6 = 31.25."""
    given = MARKS | {"Relevance": 4.5, "Accuracy": 0}
    assert parse_judgement(json.dumps(given)) is None
    assert parse_judgement(json.dumps(given), marks="any") == given
    assert quality_score(given) == pytest.approx(31.25)
    assert parse_judgement(json.dumps(MARKS | {"Clarity": "4.5"}), marks="any") == MARKS | {"Clarity": 4.5}
    for mark in (float("nan"), float("inf"), True, None, "good"):
        assert parse_judgement(json.dumps(MARKS | {"Clarity": mark}), marks="any") is None


@given(st.text(max_size=200))
def test_no_text_breaks_it(text):
    assert parse_judgement(text) is None or len(parse_judgement(text) or ()) == 6


def test_the_prompt_has_its_places_and_no_judgement_of_its_own():
    assert parse_judgement(JUDGE_PROMPT) is None
    assert JUDGE_PROMPT.index("{instruction}") < JUDGE_PROMPT.index("{answer}")
