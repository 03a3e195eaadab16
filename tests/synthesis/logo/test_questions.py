"""The question in what a model wrote: whole, and alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.synthesis.logo.questions import parse_question


@pytest.mark.parametrize(
    "question",
    [
        "What did Dr. Smith say about the war?",
        "What is the U.S. policy on trade with China?",
        "Which items (e.g. keys, values) does it return?",
        "What does `x: int` mean in the signature?",
        "How does Mr. Darcy change?",
        "What did J. R. R. Tolkien write in 1937?",
        "How do Smith et al. explain the effect?",
        "What happened at 5 p.m. in St. Petersburg?",
        "Which of No. 5 and No. 6 is approx. Three metres long?",
        "What did Mr. Will say about it?",
        "In the context of Python: how does it work?",
        'What does "Who goes there?" mean in the story?',
        "What is version 3.11 for?",
        "According to Prof. Is the author right?",
        "谁写了这本书？",
    ],
)
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "  {} It is easy.",
        "Question: {}",
        "**Question 1:** {}",
        "1. {}\n2. And what else is there?",
        '"{}"',
        "> - {}",
        "Sure, here it is.\n\n{}",
        "Here is a question about the text: {}",
        "The text is about many things.\n{}",
    ],
)
def test_a_question_is_taken_whole(question, form):
    assert parse_question(form.format(question)) == question


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("The war ended in 1945. Who had begun it?", "Who had begun it?"),
        ("Here is a short question. In 1917, who was king?", "In 1917, who was king?"),
        ("He lives in Paris. What is his name?", "What is his name?"),
        ("Consider the passage: What is it about?", "What is it about?"),
        ("They met the U.S. president. What did they ask?", "What did they ask?"),
        ("这是一段话。谁写了它？", "谁写了它？"),
        ("What Who wrote the book?", "Who wrote the book?"),
        ("No question here.", None),
        ("Really?", None),
    ],
)
def test_what_stands_before_it_is_left_out(text, question):
    assert parse_question(text, leads=["What", "How"]) == question


@given(st.text(max_size=200))
def test_any_text_gives_a_part_of_itself_or_nothing(text):
    found = parse_question(text, leads=["What", ""])
    assert found is None or (found in text and found.strip())
