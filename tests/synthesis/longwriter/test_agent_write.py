"""AgentWrite and Self-Lengthen, call by call: the test plays the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from align.generation.generators import Completion
from align.synthesis.longwriter.agent_write import AgentWrite, clean_step
from align.synthesis.longwriter.candidates import Candidate, Written
from align.synthesis.longwriter.instructions import Instruction
from align.synthesis.longwriter.self_lengthen import SelfLengthen, _portion
from align.synthesis.longwriter.writing_plan import Step, parse_plan, render_plan, with_lengths
from tests.synthesis.scripted import settings_of

ITEM = Instruction("i", "rows.jsonl:1", "Write about bees.", 30)
PLAN = "Paragraph 1 - Main Point: one - Word Count: 10 words\nParagraph 2 - Main Point: two - Word Count: 20 words"


def words(count: int) -> str:
    return " ".join(["bee"] * (count - 1) + ["end."])


def play(dialogue, answers):
    """The dialogue's result and the prompts of its calls, each of one request."""
    prompts, answers = [], iter(answers)
    try:
        requests = next(dialogue)
        while True:
            (request,) = requests
            prompts.append(request)
            answer = next(answers)
            completion = answer if isinstance(answer, Completion) else Completion(answer, 5, "stop")
            requests = dialogue.send([completion])
    except StopIteration as end:
        assert next(answers, None) is None, "not every answer was asked for"
        return end.value, prompts


def agent(**changes):
    settings = {k: v for k, v in settings_of("longwriter")["agent_write"].items() if k != "_target_"}
    made = AgentWrite(**(settings | {"min_step_words": 5, "max_step_words": 50} | changes))
    made.check()
    return made


def write(answers, **changes):
    written = Written()
    result, requests = play(agent(**changes).write(ITEM, "i/agent0", 7, written), answers)
    return result, requests, written


# ---- plans


@pytest.mark.parametrize(
    "text",
    [
        PLAN,
        f"Here is the plan:\n\n{PLAN}\n\nI hope it helps.",
        "**Paragraph 1** - **Main Point:** one - **Word Count:** 10\n\n"
        "**Paragraph 2** - **Main Point:** two - **Word Count:** 20",
        "## Paragraph 1: Main Point: [one]. Word Count: [8-12 words]\n"
        "## Paragraph 2: Main Point: [two]. Word Count: [15 to 25]",
        "paragraph 1 – Main Point: one – Word Count: ~10 words\n"
        "paragraph 2 – Main Point: two\n– Word Count: about 20 words",
        "Paragraph 1 - one - Word Count: 10\nParagraph 2 - two - Word Count: 20\nParagraph 2 - Main Point: again",
    ],
)
def test_forms_of_a_plan(text):
    assert parse_plan(text) == [Step("one", 10), Step("two", 20)]


@pytest.mark.parametrize(
    "text", ["", "No plan.", "Paragraph 2 - Main Point: two - Word Count: 20", "Paragraph 1 -"]
)
def test_no_plan(text):
    assert parse_plan(text) is None


@pytest.mark.parametrize(
    "text",
    [
        "Paragraph 1: one (10 words)\nParagraph 2: two (20 words)",
        "Paragraph 1 (10 words): one\nParagraph 2 [20 words]: two",
        "Paragraph 1: one. 10 words.\nParagraph 2: two; about 20 words",
        "Paragraph 1 - Word Count: 10 words - Main Point: one\nParagraph 2 - two - Word Count: twenty words",
        "Paragraph One - Main Point: one - Word Count: 10\nParagraph two - Main Point: two - Word Count: 20",
        "1. Main Point: one - Word Count: 10\n2. Main Point: two - Word Count: 20",
        "1. Paragraph 1 - Main Point: one - Word Count: 10\n2. Paragraph 2 - Main Point: two - Word Count: 20",
        "1. one (10 words)\n2. two (20 words)",
        "Section 1: one - 10 words\nSection 2: two - 20 words",
        "Part 1: Overview\nParagraph 1 - one - Word Count: 10\nParagraph 2 - two - Word Count: 20",
        "第一段：one（10字）\n第二段：two - 字数：二十字",
        "| Paragraph | Main Point | Word Count |\n|---|---|---|\n| 1 | one | 10 words |\n| 2 | two | ~20 |",
        "| Paragraph 1 | one | 10 |\n| Paragraph 2 | two | 20 words |",
    ],
)
def test_further_forms_of_a_plan(text):
    assert parse_plan(text) == [Step("one", 10), Step("two", 20)]


@pytest.mark.parametrize(
    ("count", "words"),
    [
        ("~1.5k words", 1500),
        ("1,200 words", 1200),
        ("200,300 words", 250),
        ("一千五百字", 1500),
        ("8-12 words", 10),
        ("≈ 400", 400),
        ("400 words - Tone: warm", 400),
        ("to be decided", None),
        ("0 words", None),
        ("999999999 words", None),
    ],
)
def test_counts_of_words(count, words):
    assert parse_plan(f"Paragraph 1 - Main Point: one - Word Count: {count}") == [Step("one", words)]


@pytest.mark.parametrize(
    "point",
    [
        "Word choices and keywords: their use",
        "Word choices and key**words:** their use",
        "Explain key words: scarcity and price",
        "words: what they are",
        "Say 500 words to him",
        "about 1984 and 3 things",
    ],
)
def test_only_the_last_label_of_a_step_ends_its_point(point):
    assert parse_plan(f"Paragraph 1 - Main Point: {point} - Word Count: 300 words") == [Step(point, 300)]
    assert parse_plan(f"Paragraph 1 - Main Point: {point}") == [Step(point, None)]


def test_a_list_without_labels_and_counts_is_no_plan():
    assert parse_plan("1. Buy milk\n2. Go home") is None


POINTS = st.lists(
    st.sampled_from(["bees", "in 2019", "3.5 million", "a - b", "(c)", "d: e"]), min_size=1, max_size=4
)


@given(st.lists(st.tuples(POINTS, st.integers(1, 5000)), min_size=1, max_size=60))
def test_a_rendered_plan_is_read_back(parts):
    steps = [Step(" ".join(["why", *point, "so"]), count) for point, count in parts]
    assert parse_plan(render_plan(steps)) == steps


def test_lengths_are_scaled_to_what_is_asked_for():
    """10 and 20 for 90 words: threefold, no more than 50, and the first gets what the second cannot have."""
    steps = [Step("a", 10), Step("b", 20)]
    assert [s.words for s in with_lengths(steps, 90, least=5, most=50)] == [40, 50]
    assert [s.words for s in with_lengths(steps, 60, least=5, most=50)] == [20, 40]
    assert [s.words for s in with_lengths(steps, None, least=5, most=50)] == [10, 20]
    assert [s.words for s in with_lengths([*steps, Step("c", None)], None, least=5, most=50)] == [10, 20, 15]
    assert [s.words for s in with_lengths([Step("a", None)], 40, least=5, most=50)] == [40]
    assert [s.words for s in with_lengths([Step("a", None)], None, least=5, most=50)] == [5]


@given(st.lists(st.integers(1, 2000), min_size=1, max_size=50), st.integers(1, 60_000))
def test_lengths_add_up_to_what_is_asked_for(counts, required):
    """Unless even the longest steps are too short; bounds hold unless even the shortest steps are too long."""
    least, most = 200, 1000
    planned = [
        s.words for s in with_lengths([Step("a", n) for n in counts], required, least=least, most=most)
    ]
    wanted = max(len(counts), min(required, most * len(counts)))
    assert sum(planned) == wanted
    assert max(planned) <= most and min(planned) >= (least if required >= least * len(counts) else 1)


def test_ten_steps_for_600_words_are_600_words():
    steps = [Step("a", 300)] * 10
    assert sum(s.words for s in with_lengths(steps, 600, least=200, most=1000)) == 600


# ---- AgentWrite


def test_each_step_sees_instruction_plan_and_the_text_so_far():
    result, requests, written = write([PLAN, words(10), words(20)])
    assert result.text == f"{words(10)}\n\n{words(20)}" and result.source == "agent_write"
    assert [request.id for request in requests] == ["i/agent0/plan0", "i/agent0/step1/1", "i/agent0/step2/1"]
    for request in requests:
        assert ITEM.text in request.messages[0].content
    second = requests[2].messages[0].content
    assert PLAN in second and words(10) in second and second.endswith("two - Word Count: 20 words")
    common = second.index("(nothing") if "(nothing" in second else second.index(words(10))
    assert requests[1].messages[0].content[:common] == second[:common]  # what is shared stands first
    assert written.counts["steps asked again"] == 0 and result.record["step_words"] == [10, 20]


def test_a_step_that_misses_its_length_is_asked_for_again_and_the_nearest_is_kept():
    """Of 10 words, 6 miss (10/6 > 1.5); 25 miss by more; then 14 would do, but the third try is the last."""
    result, requests, written = write([PLAN, words(6), words(25), words(4), words(20)])
    assert result.record["step_words"] == [6, 20] and result.record["step_tries"] == [3, 1]
    again = requests[2].messages[0].content
    assert again.startswith(requests[1].messages[0].content) and "6 words" in again and "10 words" in again
    assert written.counts["steps asked again"] == 2 and written.counts["steps that miss their length"] == 1
    assert len({request.seed for request in requests}) == len(requests)


@pytest.mark.parametrize(("count", "tries"), [(7, 1), (15, 1), (6, 2), (16, 2)])
def test_the_bounds_of_a_step(count, tries):
    """Between 10/1.5 and 10·1.5 words a step of 10 is right."""
    answers = [PLAN, words(count), *([words(10)] if tries == 2 else []), words(20)]
    result, _, _ = write(answers)
    assert result.record["step_tries"] == [tries, 1]


def test_an_empty_step_drops_the_answer():
    result, _, written = write([PLAN, "", " ", "Paragraph 1:"])
    assert result is None and written.dropped == {"agent_write: a step stayed empty": 1}


def test_plans_that_cannot_be_followed():
    result, _, written = write(["no plan", "none either"])
    assert result is None and written.dropped == {"agent_write: no plan could be read": 1}
    result, _, written = write([PLAN, PLAN], max_steps=1)
    assert result is None and written.dropped == {"agent_write: a plan of more than 1 steps": 1}
    cut = Completion(f"{PLAN}\nParagraph 3 - Main Point: cut o", 9, "length")
    result, _, _ = write([cut, words(10), words(20)])
    assert result is not None


def test_what_models_repeat_before_a_paragraph_is_cut_off():
    line = "Paragraph 2 - Main Point: two - Word Count: 20 words"
    assert clean_step(f"**Paragraph 2:**\n\n{line}\n\nBees fly.\n\nThey hum.") == "Bees fly.\n\nThey hum."
    assert clean_step("The main point: bees. Word count: none.") == "The main point: bees. Word count: none."


# ---- Self-Lengthen


def lengthen(first, answers, **changes):
    settings = {k: v for k, v in settings_of("longwriter")["self_lengthen"].items() if k != "_target_"}
    made = SelfLengthen(**(settings | {"rounds": 1} | changes))
    made.check()
    written = Written()
    candidate = Candidate(first, "sampled", True)
    result, requests = play(made.lengthen(ITEM, candidate, "i/lengthened0", 7, written), answers)
    return result, requests, written


FIRST = "One two.\n\nThree four.\n\nFive six.\n\nSeven eight."


def test_the_first_half_is_extended_and_two_thirds_of_that_are_completed():
    extended = "A b c d.\n\nE f g h.\n\nI j k l."
    whole = "A b c d.\n\nE f g h.\n\nm n o p q r s t."
    result, requests, written = lengthen(FIRST, [extended, whole])
    half, completion = requests
    assert "Three four." in half.messages[0].content and "Five six." not in half.messages[0].content
    assert FIRST in completion.messages[0].content
    assert completion.lead == "A b c d.\n\nE f g h."
    assert result.text == whole and result.record == {"words_before": 8}
    assert written.counts["self_lengthen: rounds that count"] == 1


@pytest.mark.parametrize(
    "whole",
    [
        "One two three four five six seven eight.",  # not longer
        "One two three four five six seven eight nine.",  # longer, but not 1.2 times
        Completion(words(20), 5, "length"),  # cut off
        " ".join(["a b c d e f g h i j k l m"] * 2),  # 13 words that come again
    ],
)
def test_a_round_that_does_not_count(whole):
    result, _, written = lengthen(FIRST, ["A b.\n\nC d.\n\nE f.", whole])
    assert result is None and written.dropped == {"self_lengthen: not 1.2 times as long": 1}


def test_portions_are_whole_paragraphs_then_lines_then_sentences():
    assert _portion("a\n\nb\n\nc\n\nd", 1, 2) == "a\n\nb"
    assert _portion("a\nb\nc", 2, 3) == "a\nb"
    assert _portion("A b. C d. E f.", 2, 3) == "A b. C d."
    assert _portion("一句。两句。", 1, 2) == "一句。"
    assert _portion("alone", 1, 2) == "alone"
