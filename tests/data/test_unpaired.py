"""Rows of single answers with labels, and the answer to another prompt behind each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from align.core.errors import UserError
from align.data.dataset import PreferenceData, load_preference_data
from align.data.notices import notices
from align.data.placements.randomised import Randomised
from align.data.positions import Drawn
from align.data.settings import DataSettings, PositionSettings
from align.data.stored_rows import to_example
from tests.rows import words
from tests.tiny import tiny_tokenizer

KINDS = {"weight": "prompt", "label": "label"}


def row(prompt: int, answer: str, label: Any = True, **more: Any) -> dict[str, Any]:
    return {"prompt": f"w{prompt} w9", "completion": f" {answer}", "label": label, "weight": prompt} | more


# Prompts A, A, B, C: answers w20, w21, w22, w23.
ROWS = [row(10, "w20"), row(10, "w21", False), row(11, "w22 w23 w24"), row(12, "w23", False)]


def load(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> PreferenceData:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    asked = {"columns": KINDS, "unrelated": True} | settings.pop("asked", {})
    positions = settings.pop("positions", PositionSettings())
    return load_preference_data(
        DataSettings(path=str(path), eval_size=0, **settings),
        tiny_tokenizer(),
        positions=positions,
        seed=0,
        **asked,
    )


def texts(data: PreferenceData) -> list[list[str]]:
    """The answers of each row, without the end of the text."""
    tokenizer = tiny_tokenizer()
    return [
        [
            tokenizer.decode(answer.input_ids, skip_special_tokens=True).strip()
            for answer in to_example(one).answers
        ]
        for one in data.train
    ]


@pytest.mark.parametrize("processes", [1, 3])
def test_each_row_gets_the_next_answer_to_another_prompt(tmp_path: Path, processes: int) -> None:
    """Also across the stretches of processes, and from the end to the beginning."""
    data = load(tmp_path, ROWS, num_proc=processes)
    own = [["w20"], ["w21"], ["w22 w23 w24"], ["w23"]]
    others = [["w22 w23 w24"], ["w22 w23 w24"], ["w23"], ["w20"]]
    assert texts(data) == [one + other for one, other in zip(own, others, strict=True)]
    numbers = [to_example(one).columns.tolist() for one in data.train]
    assert numbers == [[[w, w], [label, -1]] for w, label in ((10, 1), (10, 0), (11, 1), (12, 0))]


def test_counts_and_what_is_said(tmp_path: Path) -> None:
    data = load(tmp_path, ROWS)
    counts = {name: data.counts[name] for name in ("good_answers", "bad_answers", "unrelated_answers")}
    assert counts == {"good_answers": 2, "bad_answers": 2, "unrelated_answers": 4}
    said = " ".join(notices(data, window=None))
    assert "2 are good and 2 are bad" in said and "the next row with another prompt" in said
    assert data.train[0]["num_answers"] == 2


def test_what_does_not_fit_is_cut_and_counted(tmp_path: Path) -> None:
    """Behind a prompt of three tokens there is room for all but the last one."""
    rows = [row(10, "w20") | {"prompt": "w10 w9 w9"}, row(11, "w22 w23 w24", False)]
    whole = to_example(load(tmp_path, rows).train[0]).answers[1].input_ids
    data = load(tmp_path, rows, max_length=len(whole) + 2)
    example = to_example(data.train[0])
    assert len(example.prompt_ids) == 3
    np.testing.assert_array_equal(example.answers[1].input_ids, whole[:-1])
    assert data.counts["cut_unrelated"] == 1
    assert "(1 of them are cut to fit)" in " ".join(notices(data, window=None))


def test_a_placed_row_has_room_for_its_own_answer(tmp_path: Path) -> None:
    """Positions end at K: an answer to another prompt that is longer than the row's own would go beyond."""
    rows = [row(10, "w20"), row(11, "w22 w23 w24 w25", False)]
    lengths = [len(to_example(one).answers[0].input_ids) for one in load(tmp_path, rows).train]
    data = load(tmp_path, rows, positions=PositionSettings(Randomised(lengths[1] + 3)))
    first, second = map(to_example, data.train)
    assert [len(answer.input_ids) for answer in first.answers] == [lengths[0], lengths[0]]
    assert [len(answer.input_ids) for answer in second.answers] == [lengths[1], lengths[0]]
    assert first.drawn == Drawn(0, 0, lengths[0]) and data.counts["cut_unrelated"] == 1
    assert data.counts["largest_position"] < lengths[1] + 3


def test_rows_that_cannot_be_used_lend_no_answer(tmp_path: Path) -> None:
    rows = [row(10, "w20"), row(11, " "), row(12, "w23", False)]
    data = load(tmp_path, rows, bad_rows="drop", bad_rows_limit=None)
    assert texts(data) == [["w20", "w23"], ["w23", "w20"]]
    assert len(data.dropped) == 1


def test_pairs_are_a_good_and_a_bad_answer(tmp_path: Path) -> None:
    """As TRL's unpaired rows of them, over one prompt; beside single answers too."""
    pair = {"prompt": "w13 w9", "chosen": " w30", "rejected": [" w31", " w32"], "weight": 2}
    data = load(tmp_path, [pair, *ROWS])
    assert texts(data)[0] == ["w30", "w31", "w32", "w20"]
    assert to_example(data.train[0]).columns.tolist() == [[2, 2, 2, 2], [1, 0, 0, -1]]


@pytest.mark.parametrize("layout", ["conversational", "context", "kto_tag", "renamed"])
def test_layouts(tmp_path: Path, layout: str) -> None:
    """TRL's conversational rows, a context with its question, LLaMA-Factory's name, and a name of one's own."""
    rng = np.random.default_rng(0)

    def prompt() -> str:
        return words(rng, 5)

    rows, settings = [], {}
    for label in (True, False):
        if layout == "context":
            each = {"context": [prompt()], "question": prompt(), "completion": "w30", "label": label}
        elif layout == "conversational":
            each = {
                "prompt": [{"role": "user", "content": prompt()}],
                "completion": [{"role": "assistant", "content": "w30"}],
                "label": label,
            }
        else:
            name = "kto_tag" if layout == "kto_tag" else "is_good"
            each = {"prompt": prompt(), "completion": " w30", name: "true" if label else "false"}
            settings = {"columns": {"label": "is_good"}} if layout == "renamed" else {}
        rows.append(each)
    data = load(tmp_path, rows, asked={"columns": {"label": "label"}}, **settings)
    assert [to_example(one).columns.tolist() for one in data.train] == [[[1, -1]], [[0, -1]]]


def without(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in each.items() if key != name} for each in rows]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (without(ROWS, "label"), "rows.jsonl:1: column label is missing beside a single answer"),
        ([row(1, "w20", "good")], "true or false, and is 'good': data.columns={label: …} names"),
        ([row(1, "w20", 0.5)], "true or false, and is 0.5"),
        ([row(1, "")], "column completion has an empty answer"),
        ([row(1, "w20"), row(1, "w21", False)], "rows.jsonl:1: every row has this prompt"),
        ([row(10, "w20"), row(11, "w21")], "of the 2 training rows is labelled good.*method=sft"),
        ([row(10, "w20", False), row(11, "w21", False)], "is labelled bad.*add good ones"),
    ],
)
def test_careless_rows_end_in_a_sentence(tmp_path: Path, rows: list[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        load(tmp_path, rows)


def test_a_bad_answer_is_nothing_that_sft_learns(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"marked as bad .label is false.*method=kto"):
        load(tmp_path, ROWS, asked={"columns": {}, "unrelated": False})
