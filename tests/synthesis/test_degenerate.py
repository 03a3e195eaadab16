"""Answers that a model has run away with: whoever reads them takes no more time than their length."""

from __future__ import annotations

import time

import pytest

from align.data.thinking import without_thinking
from align.generation.generators import Completion
from align.generation.markers import BREAK, Escaper
from align.scores.judgement import parse_judgement
from align.scores.length import required_length
from align.synthesis.answers import comparable, trim_cut
from align.synthesis.filters import answer_problem
from align.synthesis.logo.questions import parse_question
from align.synthesis.longpo.numbered import parse_numbered
from align.synthesis.longwriter.agent_write import clean_step
from align.synthesis.longwriter.candidates import Candidate
from align.synthesis.longwriter.quality import structure
from align.synthesis.longwriter.writing_plan import parse_plan

LENGTH = 100_000
SECONDS = 5.0  # a hundredth of that is usual; two powers of the length are minutes
READERS = {
    "plan": parse_plan,
    "step": clean_step,
    "structure": lambda text: structure(Candidate(text, "sampled", True)),
    "question": lambda text: parse_question(text, leads=("What",)),
    "numbered": lambda text: parse_numbered(text, 4),
    "length": required_length,
    "judgement": parse_judgement,
    "trimmed": lambda text: trim_cut(Completion(text, 1, "length")),
    "comparable": comparable,
    "problem": lambda text: answer_problem(text, max_repetition=0.9),
    "thinking": without_thinking,
    "restored": Escaper().restore,
    "escaped": Escaper().escape,
}
# Before a run, what runs, behind it.
RUNS = (
    ("Paragraph 1", " ", "#"),
    ("1.", " ", "x"),
    ("", " ", "#"),
    ("Paragraph 1 - Main point", " ", "x"),
    ("Paragraph 1 words", " ", "x"),
    ("Paragraph 1 ", "- *", "x"),
    ("- ", " ", "x"),
    ("question", " ", "?"),
    ("", "a", "?"),
    ("", ".", "?"),
    ("", "*", "x?"),
    ("字数", " ", "x"),
    ("5", " ", "x"),
    ("{", "[", ""),
    ("", BREAK, ""),
)


@pytest.mark.parametrize("name", READERS)
def test_a_run_is_read_in_the_time_of_its_length(name: str) -> None:
    for before, run, behind in RUNS:
        text = before + run * (LENGTH // len(run)) + behind
        start = time.process_time()
        READERS[name](text)
        assert time.process_time() - start < SECONDS, (before, run, behind)
