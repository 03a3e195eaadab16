"""The parser of numbered questions: markers, and numbers in the text that are none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.synthesis.longpo.numbered import parse_numbered

PLAIN = ["What is one?", "How was it in 2019?", "Why 3.5 million?", "Where is it?"]


@pytest.mark.parametrize(
    "text",
    [
        "1. {}\n2. {}\n3. {}\n4. {}",
        "Here are 4 questions:\n\n1) {}\n\n2) {}\n\n3) {}\n\n4) {}\n\nI hope this helps.",
        "**1.** {}\n**2.** {}\n**3.** {}\n**4.** {}",
        '1: "{}"\n2: "{}"\n3: "{}"\n4: "{}"',
        "Question 1: {}\nQuestion 2: {}\nQ3. {}\n### 4. {}",
        "1. 1. {}\n2. 2. {}\n3. 3. {}\n4. 4. {}",
        "1.\n{}\n2.\n{}\n3.\n{}\n4.\n{}",
        "1. {} 2. {} 3. {} 4. {}",
        "1、{}\n2、{}\n3、{}\n4、{}",
        "1. {}\n2. {}\n3. {}\n4. {}\n5. And one more thing?",
        "问题1：{}\n问题2：{}\n问题3：{}\n问题4：{}",
        "问题一：{}\n问题二：{}\n问题三：{}\n问题四：{}",
        "第1题：{}\n第2题：{}\n第3题：{}\n第4题：{}",
        "一、{}\n二、{}\n三、{}\n四、{}",
        "① {}\n② {}\n③ {}\n④ {}",
        "①{}\n②{}\n③{}\n④{}",
        "1\\. {}\n2\\. {}\n3\\. {}\n4\\. {}",
        "### Question 1\n{}\n### Question 2\n{}\n### Question 3\n{}\n### Question 4\n{}",
        "## 1\n\n{}\n\n## 2\n\n{}\n\n## 3\n\n{}\n\n## 4\n\n{}",
        "**Question One:** {}\n**Question Two:** {}\n**Question Three:** {}\n**Question Four:** {}",
        "Here are the questions:\n- {}\n- {}\n- {}\n- {}",
        "* **{}**\n* **{}**\n* **{}**\n* **{}**",
    ],
)
def test_forms_that_models_write(text):
    assert parse_numbered(text.format(*PLAIN), 4) == PLAIN


@pytest.mark.parametrize(
    "text",
    [
        "",
        "What is one?",
        "1. What is one?\n2. What is two?\n3. What is three?",
        "1. What is one?\n3. What is three?\n4. What is four?\n5. What is five?",
        "1. Which of these:\n1. a list here\n2. goes on there\n2. What is two?\n3. What is it?\n4. And then what?",
        "1. One\n2. Two\n3. Three\n4. Four",
        "1.\n2.\n3.\n4.",
        "- What is one?\n- What is two?\n- What is three?",
        "- What is one?\n- What is two?\n- What is three?\n- What is four?\n- What is five?",
        "Q is a letter?\nQuestion one of many is this?\nWhat is it?\nAnd then what?",
    ],
)
def test_what_cannot_be_told_apart_is_none(text):
    assert parse_numbered(text, 4) is None


def test_a_wrapped_line_that_begins_with_a_number_is_no_question():
    text = (
        "1. What happened in\n2019. And what after it?\n2. Why did\n3.5 million people go?\n"
        "3. How?? Tell all.\n4. Who was it?"
    )
    assert parse_numbered(text, 4) == [
        "What happened in 2019. And what after it?",
        "Why did 3.5 million people go?",
        "How?? Tell all.",
        "Who was it?",
    ]


NUMBERS = st.sampled_from(
    ["2019.", "3.5 million", "1,000", "42)", "12:30", "7", "19.", "2.0", "(3)", "4th", "100%."]
)
WORDS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=8)


@st.composite
def questions(draw):
    """A question with numbers anywhere but at its very start."""
    parts = draw(st.lists(st.one_of(WORDS, NUMBERS), min_size=1, max_size=10))
    return " ".join(["Why", draw(WORDS), draw(WORDS), *parts]) + "?"


@given(st.lists(questions(), min_size=4, max_size=4), st.sampled_from(["{}. ", "{}) ", "**{}.** ", "{}: "]))
def test_numbers_inside_questions_never_trip_it(asked, marker):
    text = "\n".join(marker.format(k) + question for k, question in enumerate(asked, start=1))
    assert parse_numbered(text, 4) == asked


@given(st.lists(questions(), min_size=4, max_size=4), st.data())
def test_lines_wrapped_before_any_number_change_nothing(asked, data):
    """Unless the wrapped line looks exactly like the next marker: then there is no telling, and none is right."""
    lines = []
    for k, question in enumerate(asked, start=1):
        words = question.split()
        at = data.draw(st.integers(1, len(words) - 1))
        lines += [f"{k}. {' '.join(words[:at])}", " ".join(words[at:])]
    assert parse_numbered("\n".join(lines), 4) in (asked, None)


@given(st.text(max_size=300))
def test_any_text_gives_four_questions_or_none(text):
    found = parse_numbered(text, 4)
    assert found is None or (len(found) == 4 and all(question.strip() for question in found))
