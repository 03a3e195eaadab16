"""LongBench's metrics against values of the published scorer, run once over these hand-made cases."""

from __future__ import annotations

import sys

import pytest

from align.core.errors import UserError
from align.evaluation import longbench_metrics as metrics

pytest.importorskip("rouge", reason="needs the extra `evaluate`")

# task, prediction, answers, classes → the published scorer's value (LongBench/metrics.py and eval.py).
CASES = [
    ("narrativeqa", "The Cat, sat on a mat!", ["cat sat on the mat.", "dog"], None, 1.0),
    ("hotpotqa", "", ["Paris"], None, 0.0),
    ("qasper", "unanswerable", ["The yes"], None, 0.0),
    ("musique", "the the a an", ["a"], None, 0.0),
    ("2wikimqa", "Barack Hussein Obama II (born August 4, 1961)", ["Barack Obama"], None, 0.4),
    ("triviaqa", "\n\nDavid Seville\nPassage: and more David", ["david seville", "Seville"], None, 1.0),
    ("multifieldqa_en", "It is 3.5 km - well, about three-and-a-half.", ["3.5 km"], None, 0.4444444444444445),
    ("multifieldqa_zh", "答案是：北京市，海淀区。", ["北京市海淀区"], None, 0.6666666666666666),
    ("multifieldqa_zh", "ABC 公司 成立于1998年", ["abc公司于1998年成立"], None, 1.0),
    (
        "gov_report",
        "The report found that costs rose. It advised a review.",
        ["Costs rose, the report found. A review was advised."],
        None,
        0.31578946869806096,
    ),
    ("qmsum", "", ["something"], None, 0.0),
    ("multi_news", ".", ["..."], None, 0.0),
    (
        "samsum",
        "Amanda baked cookies and will bring Jerry some tomorrow.\nDialogue: x",
        ["Amanda baked cookies and will bring some to Jerry."],
        None,
        0.7777777727777778,
    ),
    ("dureader", "可以用微波炉加热牛奶", ["牛奶可以用微波炉加热两分钟"], None, 0.7272727223140496),
    ("vcsum", "会议讨论了预算问题。", ["本次会议主要讨论预算。"], None, 0.6666666616666668),
    (
        "trec",
        "Type: Number of something\nQuestion",
        ["Number of something"],
        ["Number of something", "Number", "Other number", "Date"],
        1.0,
    ),
    (
        "trec",
        "abbreviation expansion",
        ["abbreviation expansion"],
        ["abb", "abbreviation", "expansion", "abbreviation expansion"],
        0.5,
    ),
    ("trec", "Date and City", ["City"], ["Date", "City", "Country"], 0.5),
    ("trec", "Country", ["City"], ["Date", "City", "Country"], 0.0),
    ("lsht", "农业、农村类新闻", ["农业、农村"], ["农业", "农村", "农业、农村", "军事"], 0.5),
    (
        "passage_retrieval_en",
        "Paragraph 3, or Paragraph 12. Perhaps 3",
        ["Paragraph 3"],
        None,
        0.6666666666666666,
    ),
    ("passage_retrieval_en", "none", ["Paragraph 3"], None, 0.0),
    ("passage_retrieval_zh", "段落12或者段落2", ["段落2"], None, 0.5),
    ("passage_count", "There are 7 of 30 paragraphs", ["7"], None, 0.5),
    ("passage_count", "07", ["7"], None, 0.0),
    ("lcc", "```python\n# a comment\nreturn self.value + 1\nx", ["return self._value + 1"], None, 0.98),
    ("repobench-p", "\n\n// only a comment\n# none `", ["int x = 0;"], None, 0.0),
    ("repobench-p", "int main() { return 0; }", ["int main(void) { return 0; }"], None, 0.92),
]


@pytest.mark.parametrize(("task", "prediction", "answers", "classes", "expected"), CASES)
def test_equals_the_published_scorer(task, prediction, answers, classes, expected):
    assert metrics.score(task, prediction, answers, classes) == expected


def test_every_task_of_the_benchmark_has_a_case():
    """Table 1 of arXiv:2308.14508 has 21 tasks."""
    assert len(metrics.METRICS) == 21
    assert set(metrics.METRICS.values()) == {metrics.METRICS[case[0]] for case in CASES}


def test_neighbours_of_a_removed_class_stay():
    """`abb` and `abbreviation` are both proper substrings; removing the first passes over the second."""
    classes = ["abb", "abbreviation", "abbreviation expansion"]
    assert metrics.classification("abbreviation expansion", "abbreviation expansion", classes) == 1 / 2


def test_a_text_too_long_for_rouge_scores_zero():
    """The package reconstructs the common subsequence by recursion; the published scorer catches its end."""
    text = " ".join(f"w{i}" for i in range(sys.getrecursionlimit() + 1))  # a call a word
    assert metrics.rouge_l(text, text) == 0.0


def test_the_best_reference_counts():
    assert metrics.score("qasper", "a red fox", ["blue whale", "red fox"]) == 1.0
    assert metrics.score("qasper", "a red fox", []) == 0.0


def test_extended_tasks_and_buckets():
    """LongBench-E files end in `_e`; lengths below 4000 and 8000 are the first two buckets."""
    assert metrics.score("qasper_e", "fox", ["fox"]) == 1.0
    assert [metrics.bucket(length) for length in (0, 3999, 4000, 7999, 8000)] == [
        "0-4k",
        "0-4k",
        "4-8k",
        "4-8k",
        "8k+",
    ]


def test_a_task_is_rounded_as_published():
    assert metrics.task_score([1.0, 0.0, 0.0]) == 33.33


def test_unknown_task():
    with pytest.raises(UserError, match="no task novelqa"):
        metrics.score("novelqa", "", [""])
