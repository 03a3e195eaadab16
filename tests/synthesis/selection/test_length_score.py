"""`select=length_score`: Minimum Tuning's filter, its golden values, and what states no length."""

from __future__ import annotations

import json

import pytest

from align import synthesize
from align.core.errors import UserError
from align.scores.length import required_length
from align.synthesis.selection.length_score import LengthScore
from align.synthesis.selection.select import select_rows
from tests.synthesis.scripted import save_model, workspace


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def asked(request, written, **more):
    return {"prompt": [{"role": "user", "content": request}], "chosen": "tea " * written, **more}


def scored(tmp_path, model, *rows, least=80.0):
    selector = LengthScore(least=least)
    selector.check()
    return selector.scores(write(tmp_path / "rows.jsonl", rows), workspace(tmp_path, model))


def test_scores_of_a_thousand_words(tmp_path, model):
    """100·(1 − (1000/714 − 1)/2) = 79.97198880, and so on: 715 … 1,600 words have 80 or more."""
    written = {714: 79.97198880, 715: 80.06993007, 1600: 80.0, 1601: 79.96666667}
    found = scored(tmp_path, model, *(asked("Write 1,000 words about tea.", n) for n in written))
    for score, (words, expected) in zip(found, written.items(), strict=True):
        assert score.details["length_score"] == pytest.approx(expected, abs=5e-9)
        assert score.details | {"required": 1000.0, "written": float(words)} == score.details
    assert [score.value is not None for score in found] == [False, True, True, False]
    assert found[0].why == "714 words where 1000 were asked for: S_l 79.97 < 80"
    assert found[2].why == "1600 words where 1000 were asked for: S_l 80.00 ≥ 80"


def test_lengths_that_published_filters_misread(tmp_path, model):
    """Theirs misses `500-word`, reads `1,000 words` as 0, a range as its end, and one length in two scripts as two."""
    requests = {
        "A 500-word essay on tea": 500,
        "Tea, in 1,000 words": 1000,
        "Tea, in 500 to 800 words": None,
        "请写一篇2000字的文章，约两千字": 2000,
    }
    assert [required_length(request) for request in requests] == [500, 1000, None, 2000]
    rows = [asked(request, length or 500) for request, length in requests.items()]
    found = scored(tmp_path, model, *rows)
    assert [score.value for score in found] == [100.0, 100.0, None, 100.0]
    assert found[2].why == "the prompt states 2 lengths in words, where one is needed"
    assert found[2].details is None


def test_rows_that_state_no_one_length_are_left_out_with_the_reason(tmp_path, model):
    requests = {
        "Tell me of tea.": "0 lengths in words",
        "Either 300 words or 900 words on tea": "2 lengths in words",
        "Some paragraphs of 100 words each": "the length of each part and not how many",
    }
    found = scored(tmp_path, model, *(asked(request, 300) for request in requests))
    assert [score.value for score in found] == [None] * 3
    for score, why in zip(found, requests.values(), strict=True):
        assert why in score.why


def test_the_request_counts_and_not_the_context_or_the_thinking(tmp_path, model):
    """A document full of lengths asks for none; a thinking block is no part of the answer."""
    rows = [
        {
            "context": ["It has 300 words.", "And 700 words."],
            "question": "Sum it up in 50 words",
            "chosen": "tea " * 50,
        },
        {"prompt": "Tea in 50 words", "chosen": "<think>\n" + "hm " * 400 + "\n</think>\n\n" + "tea " * 50},
        {"prompt": "Tea in 50 words", "chosen": "茶" * 50, "rejected": "no"},
    ]
    assert [score.value for score in scored(tmp_path, model, *rows)] == [100.0] * 3


def test_a_row_of_several_turns_is_as_good_as_its_worst_one(tmp_path, model):
    def talk(*turns):
        messages = []
        for request, written in turns:
            messages += [
                {"role": "user", "content": request},
                {"role": "assistant", "content": "tea " * written},
            ]
        return {"messages": messages}

    met, missed, unknown = scored(
        tmp_path,
        model,
        talk(("Tea in 50 words", 50), ("Again in 100 words", 110)),
        talk(("Tea in 50 words", 50), ("Again in 100 words", 30)),
        talk(("Tea in 50 words", 50), ("Thanks", 3)),
    )
    assert met.value == pytest.approx(100 * (1 - 0.1 / 3))
    assert met.why.startswith("turn 2: 110 words where 100")
    assert missed.value is None and missed.details["written"] == 30.0
    assert unknown.value is None and unknown.why.startswith("turn 2: the prompt states 0 lengths")


def test_kept_rows_say_why_and_the_best_met_come_first(tmp_path, model):
    rows = [asked("100 words of tea", n, id=f"r{n}") for n in (20, 90, 100, 130)]
    source = write(tmp_path / "rows.jsonl", rows)
    kept = select_rows(LengthScore(keep=2), source, tmp_path / "train.jsonl", workspace(tmp_path, model))
    assert kept == (2, 2)
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == ["r90", "r100"]
    assert lines[1]["selection"]["rank"] == 1
    assert lines[1]["selection"]["details"] == {"length_score": 100.0, "required": 100.0, "written": 100.0}
    everything = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [line["kept"] for line in everything] == [False, True, True, False]


@pytest.mark.parametrize("least", [-1.0, 101.0, float("nan")])
def test_a_score_that_no_answer_can_have_is_refused(least):
    with pytest.raises(UserError, match=r"select\.least=.* must lie in \[0, 100\]"):
        LengthScore(least=least).check()


def test_the_command_leaves_out_what_misses_its_length(tmp_path, model):
    rows = [asked("100 words of tea", n, id=f"r{n}") for n in (20, 100)]
    source = write(tmp_path / "rows.jsonl", rows)
    words = ["pipeline=rows", f"pipeline.path={source}", f"model.path={model}", f"output={tmp_path / 'out'}"]
    summary = synthesize(*words, "select=length_score")
    assert summary.rows == 1
    assert summary.dropped == {"not selected by length_score(least=80)": 1}
