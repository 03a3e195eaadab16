"""Long writing: words, S_l and repetition of each answer, and the ruler curve."""

from __future__ import annotations

import json

import pytest
from hydra import compose, initialize_config_module

from align.core.errors import UserError
from align.evaluation.longwrite import LongWrite, required_bucket
from align.generation.generators import Completion
from align.scores.judgement import DIMENSIONS
from align.synthesis.longwriter.quality import Judge
from tests.evaluation.helpers import Answers, evaluation


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"Write {n} words", "type": "x", "length": n} for n in (100, 100, 1000)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_scores(prompts, tmp_path):
    """200 words for 100 score 66.67, 200 for 1000 score 0 (S_l's formula); the mean is 44.44."""
    said = " ".join(f"{a}{b}" for a in "abcdefghij" for b in "abcdefghijklmnopqrst")
    result = LongWrite(path=prompts).run(evaluation(tmp_path, Answers(lambda _: said, finish="length")))
    assert result.scores["length_score"].mean == pytest.approx((200 / 3 * 2 + 0) / 3)
    assert result.scores["written_words"].mean == 200
    assert result.scores["repetition"].mean == 0
    assert result.details["cut_at_the_limit"] == 3
    assert result.notes == ["3 of 3 answers were cut at suite.max_new_tokens=32768."]
    assert result.details["written_by_required"]["1000.0"]["mean"] == 200
    assert list(result.details["by_required_words"]) == ["0-500", "500-2k"]


def test_repetition(prompts, tmp_path):
    """Ten words twice: of 13 8-grams the six that lie whole in either half occur twice."""
    words = [f"w{i}" for i in range(10)]
    result = LongWrite(path=prompts).run(evaluation(tmp_path, Answers(lambda _: " ".join(words + words))))
    assert result.scores["repetition"].mean == pytest.approx(6 / 13)


def test_buckets():
    """LongBench-Write's ranges: below 500, 2,000, 4,000 words, and above."""
    assert [required_bucket(n) for n in (100, 500, 1999, 2000, 4000)] == [
        "0-500",
        "500-2k",
        "500-2k",
        "2k-4k",
        "4k-20k",
    ]


def test_refusals(tmp_path):
    with pytest.raises(UserError, match=r"suite\.path is not set"):
        LongWrite().check()
    with pytest.raises(UserError, match="does not exist"):
        LongWrite(path="nowhere.jsonl").check()
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "x", "length": "long"}\n')
    with pytest.raises(UserError, match=r"prompts.jsonl:1: `length`"):
        LongWrite(path=str(path)).run(evaluation(tmp_path, Answers(str)))


MARKS = dict.fromkeys(DIMENSIONS, 3)


class Writer:
    """Writes, and judges what it has written: broken JSON first, refusing altogether one of the three."""

    name = "scripted"

    def __init__(self):
        self.judgements = 0

    def generate(self, requests, *, finished):
        for request in requests:
            if request.digest in finished:
                continue
            text = "a text of mine"
            if "/judge" in request.id:
                self.judgements += 1
                text = (
                    f"Good. {json.dumps(MARKS)}"
                    if request.id.endswith("judge1")
                    else '{"Relevance": 3, "Accu'
                )
                if request.id.startswith("longwrite/2/"):
                    text = "I cannot judge this."
            yield [(request, Completion(text, 4, "stop"))]


def test_a_judge_is_asked_again_and_its_failures_are_reported(prompts, tmp_path):
    """Marks of 3 are S_q = 50. The third answer's judge refuses three times: failed, counted, not dropped."""
    model = Writer()
    result = LongWrite(path=prompts, quality=Judge(tries=3)).run(evaluation(tmp_path, model))
    assert result.scores["quality_score"].mean == 50.0
    assert result.scores["quality_score"].n == 2
    assert result.details["judgements_failed"] == 1
    assert [record["quality_score"] for record in result.records] == [50.0, 50.0, None]
    assert result.records[2]["tries"] == 3
    assert model.judgements == 2 + 2 + 3
    assert result.notes == ["1 of 3 judgements could not be read and are in no score."]


def test_another_number_of_processes_asks_no_judge_again(prompts, tmp_path):
    """Ledgers as two processes leave them, one with a line that was being written; one process goes on from both."""
    writer = Writer()
    first = LongWrite(path=prompts, quality=Judge()).run(evaluation(tmp_path, writer))
    whole = tmp_path / "work" / "judge-longwrite.jsonl"
    lines = whole.read_text().splitlines(keepends=True)
    whole.unlink()
    (tmp_path / "work" / "judge-longwrite.0.jsonl").write_text("".join(lines[:3]))
    (tmp_path / "work" / "judge-longwrite.1.jsonl").write_text("".join(lines[3:]) + '{"request": "half')
    again = LongWrite(path=prompts, quality=Judge()).run(evaluation(tmp_path, writer))
    assert (again.records, writer.judgements, len(lines)) == (first.records, 7, 7)


def test_an_empty_answer_has_no_quality(prompts, tmp_path):
    result = LongWrite(path=prompts, quality=Judge()).run(evaluation(tmp_path, Answers(lambda _: "")))
    assert result.scores["quality_score"].mean == 0.0
    assert result.scores["length_score"].mean == 0.0


def test_the_judge_is_one_override():
    with initialize_config_module("hydra_conf", version_base="1.3"):
        config = compose(
            "evaluate",
            [
                "suite=longwrite",
                "suite.path=rows.jsonl",
                "+pipeline/quality@suite.quality=judge",
                "suite.quality.tries=2",
            ],
        )
    assert config.suite.quality.tries == 2
    assert config.suite.quality._target_ == "align.synthesis.longwriter.quality.Judge"


def test_answers_written_elsewhere(tmp_path):
    """As LongBench-Write's own files: 100 words for 100 score 100, none for 100 score 0; nobody is asked."""
    rows = [
        {"prompt": "p", "length": 100, "type": "x", "response": " ".join(["word"] * 100)},
        {"prompt": "q", "length": 100, "type": "x", "response": ""},
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    model = Answers(str)
    suite = LongWrite(predictions=str(path))
    suite.check()
    result = suite.run(evaluation(tmp_path, model))
    assert (suite.asks, model.asked) == (False, 0)
    assert result.scores["length_score"].mean == 50.0
    assert [record["cut"] for record in result.records] == [None, None]
    assert result.scores["repetition"].better == "lower"
    assert result.scores["written_words"].better is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "length": 10}, "answers.jsonl:1 has no `response`"),
        ({"prompt": "p", "length": 10, "response": None}, "answers.jsonl:1: `response` has to be a text"),
        ({"prompt": "p", "length": True, "response": "a"}, "answers.jsonl:1: `length` has to be a number"),
        ({"prompt": None, "length": 10, "response": "a"}, "answers.jsonl:1: `prompt` has to be a text"),
    ],
)
def test_bad_answers(tmp_path, row, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message):
        LongWrite(predictions=str(path)).run(evaluation(tmp_path, Answers(str)))


def test_prompts_or_answers(prompts):
    with pytest.raises(UserError, match="only one of the two"):
        LongWrite(path=prompts, predictions=prompts).check()
    with pytest.raises(UserError, match=r"suite\.limit=0 is too small"):
        LongWrite(path=prompts, limit=0).check()
