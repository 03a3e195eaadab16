"""Long writing: words, S_l and repetition of each answer, and the ruler curve."""

from __future__ import annotations

import json

import pytest

from align.errors import UserError
from align.evaluation.longwrite import LongWrite, repetition, required_bucket
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
    assert result.details["written_by_required"]["1000.0"]["mean"] == 200
    assert list(result.details["by_required_words"]) == ["0-500", "500-2k"]


def test_repetition():
    """Ten words twice: of 13 8-grams three come again (those that lie whole in the second half)."""
    words = [f"w{i}" for i in range(10)]
    assert repetition(" ".join(words + words)) == pytest.approx(3 / 13)
    assert repetition("too short") == 0.0


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
