"""suite=questions: accepted answers as substrings, means by group, bad rows in one sentence."""

from __future__ import annotations

import gzip
import json

import pytest

from align.core.errors import UserError
from align.evaluation.questions import Questions
from tests.evaluation.helpers import Answers, evaluation

ROWS = [
    {"prompt": "capital of France", "answers": ["Paris"], "group": "short"},
    {"prompt": "capital of Norway", "answers": ["Oslo", "Christiania"], "group": "short"},
    {"prompt": "capital of Peru", "answers": ["Lima"], "group": "long"},
]


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return str(path)


def test_means_of_all_and_of_each_group(tmp_path):
    """Right are the second accepted answer and one inside a sentence; Lima is asked for and not said: 2 of 3."""
    said = {"France": "It is Paris.", "Norway": "once the Christiania", "Peru": "Cusco"}
    model = Answers(lambda prompt: said[prompt.split()[-1]])
    result = Questions(path=write(tmp_path / "rows.jsonl", ROWS)).run(evaluation(tmp_path / "out", model))
    assert [record["found"] for record in result.records] == [1.0, 1.0, 0.0]
    assert result.scores["found"].mean == pytest.approx(2 / 3)
    assert result.scores["found, short"].mean == 1.0
    assert (result.scores["found, long"].mean, result.scores["found, long"].n) == (0.0, 1)


def test_what_is_answered_is_not_asked_again(tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write("".join(f"{json.dumps({'prompt': row['prompt'], 'answers': ['x']})}\n" for row in ROWS))
    model = Answers(lambda prompt: "x")
    for _ in range(2):
        result = Questions(path=str(path), limit=2).run(evaluation(tmp_path / "out", model))
    assert (model.asked, list(result.scores)) == (2, ["found"])


def test_rows_without_a_group_count_in_the_whole_alone(tmp_path):
    rows = [{"prompt": "a", "answers": ["x"], "group": "g"}, {"prompt": "b", "answers": ["y"]}]
    suite = Questions(path=write(tmp_path / "rows.jsonl", rows))
    result = suite.run(evaluation(tmp_path / "out", Answers(lambda _: "x")))
    assert {name: score.n for name, score in result.scores.items()} == {"found": 2, "found, g": 1}


def test_cut_answers_and_answers_that_cannot_be_found_are_said(tmp_path):
    """An answer whose first line is whole is not cut where that line counts; of "The!" nothing is left to look for."""
    rows = [{"prompt": "a", "answers": ["x"]}, {"prompt": "b", "answers": ["The!"]}]
    suite = Questions(path=write(tmp_path / "rows.jsonl", rows))
    model = Answers(lambda prompt: "x\ny" if prompt == "a" else "x", finish="length")
    result = suite.run(evaluation(tmp_path / "out", model))
    assert result.notes[0] == "1 of 2 answers were cut at suite.max_new_tokens=32."
    assert result.notes[1].startswith("1 of 2 questions have no answer that could be found")
    assert [record["cut"] for record in result.records] == [False, True]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "who \ud83d", "answers": ["x"]},
            "rows.jsonl:1: character 5 of .* half of a surrogate pair",
        ),
        ({"prompt": "who", "answers": ["x"], "group": {"\ud83d": 1}}, "rows.jsonl:1: character 1 of"),
        ({"prompt": "who"}, "rows.jsonl:1 has no `answers`"),
        ({"prompt": "who", "answers": []}, "rows.jsonl:1: `answers` has to be a list"),
        ({"prompt": 3, "answers": ["x"]}, "rows.jsonl:1: `prompt` has to be a text"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=message):
        Questions(path=path).run(evaluation(tmp_path / "out", Answers(str)))


def test_bad_settings(tmp_path):
    with pytest.raises(UserError, match=r"suite\.path is not set"):
        Questions().check()
    with pytest.raises(UserError, match=r"nowhere\.jsonl does not exist"):
        Questions(path="nowhere.jsonl").check()
    with pytest.raises(UserError, match=r"suite\.limit"):
        Questions(path=write(tmp_path / "rows.jsonl", ROWS), limit=-1).check()


@pytest.mark.parametrize(("counted", "found"), [("first_line", 0.0), ("whole", 1.0)])
def test_what_of_an_answer_counts(tmp_path, counted, found):
    """A list of all documents holds the answer, in a line that the published scorer does not look at."""
    model = Answers(lambda prompt: "Documents in the list:\nParis\nOslo\nLima")
    suite = Questions(path=write(tmp_path / "rows.jsonl", ROWS), counted=counted)
    assert suite.run(evaluation(tmp_path / "out", model)).scores["found"].mean == found


def test_files_are_read_as_training_rows_are(tmp_path):
    """A byte-order mark and blank lines change nothing."""
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "rows.jsonl").write_text("\ufeff" + "\n\n".join(lines) + "\n\n", encoding="utf-8")
    result = Questions(path=str(tmp_path / "rows.jsonl")).run(evaluation(tmp_path / "out", Answers(str)))
    assert [record["answers"] for record in result.records] == [row["answers"] for row in ROWS]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.jsonl.gz", b"no archive", r"rows\.jsonl\.gz cannot be unpacked"),
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"prompt": "a"}\n', mtime=0)[:-9],
            r"rows\.jsonl\.gz cannot be unpacked",
        ),
        ("rows.jsonl", '{"prompt": "café"}'.encode("latin-1"), r"rows\.jsonl:1: not UTF-8"),
        ("rows.jsonl", b'{"prompt": "a"\n', r"rows\.jsonl:1: malformed JSON"),
        ("rows.jsonl", b"[1]\n", r"rows\.jsonl:1: a row must be an object"),
        ("rows.jsonl", b"\n", "holds no rows"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Questions(path=str(tmp_path / name)).run(evaluation(tmp_path / "out", Answers(str)))


# Answer, reference, ROUGE-L's F of the package rouge 1.0.1.
GOLDEN = [
    ("a b c d", "a c d e", 0.749999995),
    ("the drug lowered pain more than placebo", "the drug reduced pain compared with placebo", 0.57142857),
]


def test_rouge_l_of_whole_answers(tmp_path):
    """Precision and recall 3/4 and 4/7; the best of several references; nothing said is 0; the lines count together."""
    rows = [{"prompt": said, "answers": [answer], "group": "golden"} for said, answer, _ in GOLDEN]
    rows += [
        {"prompt": "a b", "answers": ["x y", "a b"]},
        {"prompt": "", "answers": ["a"]},
        {"prompt": "a b\nc d", "answers": ["a b c d"]},
    ]
    for row in rows:
        row["prompt"] = f"say {row['prompt']}"
    suite = Questions(path=write(tmp_path / "rows.jsonl", rows), score="rouge_l")
    suite.check()
    model = Answers(lambda prompt: prompt.removeprefix("say").strip())
    result = suite.run(evaluation(tmp_path / "out", model))
    found = [record["rouge_l"] for record in result.records]
    assert found[:2] == pytest.approx([value for *_, value in GOLDEN], abs=5e-9)
    assert found[2:4] == pytest.approx([1.0, 0.0], abs=1e-8) and found[4] > 0.6
    assert result.scores["rouge_l"].mean == pytest.approx(sum(found) / 5)
    assert result.scores["rouge_l"].low is not None and result.scores["rouge_l"].better == "higher"
    assert result.scores["rouge_l, golden"].n == 2 and result.notes == []


def test_rouge_l_of_the_first_line_where_asked_for(tmp_path):
    rows = [{"prompt": "p", "answers": ["a b"]}]
    suite = Questions(path=write(tmp_path / "rows.jsonl", rows), score="rouge_l", counted="first_line")
    result = suite.run(evaluation(tmp_path / "out", Answers(lambda _: "a b\nc d e f")))
    assert result.scores["rouge_l"].mean == pytest.approx(1.0, abs=1e-8)


def test_a_score_that_is_not_known_or_not_installed(tmp_path, monkeypatch):
    path = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(UserError, match=r"suite\.score=bleu is not known: use contains, rouge_l, rouge_l_zh"):
        Questions(path=path, score="bleu").check()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"suite\.score needs the package rouge: `pip install"):
        Questions(path=path, score="rouge_l").check()
    Questions(path=path).check()
