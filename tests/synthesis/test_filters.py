"""LongPO's filters on answers."""

from __future__ import annotations

import pytest

from align.synthesis.filters import answer_problem, is_refusal, repeated_ngrams, word_repetition


def test_repetition_is_the_share_of_words_whose_type_comes_again():
    """a a b c: two of four. Case makes no difference, CJK characters are words."""
    assert word_repetition("A a b c.") == 0.5
    assert word_repetition("我我他") == pytest.approx(2 / 3)
    assert word_repetition("") == 0.0


def test_repeated_ngrams():
    """Five bigrams of `a b a b a c`, of which a-b comes twice and b-a twice: four of five."""
    assert repeated_ngrams("a b a b a c", size=2) == pytest.approx(4 / 5)
    assert repeated_ngrams("a b", size=3) == 0.0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (" \n", "empty"),
        ("I’m sorry, but I can’t help with that.", "refusal"),
        ("As an AI language model, I do not know.", "refusal"),
        ("抱歉，我无法回答这个问题。", "refusal"),
        ("It is so.", "fewer than 2 words of 3 letters"),
        ("12 34 56 2019", "fewer than 2 words of 3 letters"),
        ("the same words the same words the same words", "repetition"),
        ("The treaty was signed in Paris.", None),
        ("条约在巴黎签署。", None),
        ("The agent cannot help the user, as the text says.", None),
    ],
)
def test_reasons(text, problem):
    assert answer_problem(text, max_repetition=0.9) == problem


def test_the_bound_itself_is_kept():
    """Nine of ten words come again: 0.9 is not over 0.9, and is over 0.89."""
    text = " ".join(["one", "two", "six"] * 3 + ["once"])
    assert answer_problem(text, max_repetition=0.9) is None
    assert answer_problem(text, max_repetition=0.89) == "repetition"


def test_only_the_beginning_is_searched_for_a_refusal():
    assert not is_refusal("The manual explains what happens. " * 10 + "I'm sorry, it says.")
