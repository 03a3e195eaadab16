"""Normalised answers and what counts as found."""

from __future__ import annotations

import pytest

from align.evaluation.answers import contains_answer, normalise, token_f1


def test_normalise():
    """Lower case, punctuation joined (not split), articles as whole words only, white space folded."""
    assert normalise("The  U.S.A., an “Ally”, theatre") == "usa “ally” theatre"


@pytest.mark.parametrize(
    ("prediction", "answers", "found"),
    [
        ("It was Marie Curie, in 1903.", ["Marie Curie"], True),
        ("It was the marie  curie", ["A. Marie Curie", "Pierre"], True),
        ("It was Marie", ["Marie Curie", "Pierre"], False),
        ("nobody", ["the"], False),
        ("", ["x"], False),
        ("1903", ["1902", "1903"], True),
    ],
)
def test_contains_answer(prediction, answers, found):
    assert contains_answer(prediction, answers) is found


def test_token_f1():
    """Two of three predicted tokens are right, two of four wanted found: 2·(2/3)(1/2)/(7/6) = 4/7."""
    assert token_f1(["x", "y", "z"], ["x", "y", "u", "v"]) == pytest.approx(4 / 7)
    assert token_f1([], ["x"]) == 0.0
    assert token_f1(["x", "x"], ["x"]) == pytest.approx(2 / 3)
