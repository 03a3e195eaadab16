"""Every row layout, and every bad row by its sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from align.core.errors import UserError
from align.data.examples import Turn
from align.data.formats import parse_row, read_examples
from align.data.sources import RawRow, count_rows, open_sources, read_rows
from tests.data.helpers import write_lines


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def parse(row: dict[str, Any], **settings: Any) -> Any:
    return parse_row(RawRow(0, "rows.jsonl:1", row), **settings).example


@pytest.mark.parametrize(
    ("row", "text", "messages"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "p", ()),
        ({"prompt": "p", "chosen": "a", "rejected": ["b"]}, "p", ()),
        (
            {"prompt": [user("p")], "chosen": [assistant("a")], "rejected": [assistant("b")]},
            None,
            (user("p"),),
        ),
        ({"prompt": [user("p")], "chosen": "a", "rejected": "b"}, None, (user("p"),)),
        ({"prompt": "p", "chosen": [assistant("a")], "rejected": [assistant("b")]}, None, (user("p"),)),
        (
            {"chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]},
            None,
            (user("p"),),
        ),
        (
            {"prompt": "p", "chosen": [user("p"), assistant("a")], "rejected": [user("p"), assistant("b")]},
            None,
            (user("p"),),
        ),
        (
            {
                "conversations": [{"from": "human", "value": "p"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            None,
            (user("p"),),
        ),
    ],
)
def test_one_chosen_and_one_rejected(row: dict, text: str | None, messages: tuple) -> None:
    example = parse(row)
    assert (example.text, example.messages) == (text, messages)
    assert example.turns == (Turn(None, "a", ("b",)),)


def test_implicit_text_prompt_is_what_answers_share() -> None:
    """The space before the first difference belongs to the answers, as in TRL's extract_prompt."""
    example = parse({"chosen": "Q: sky? A: blue", "rejected": "Q: sky? A: green"})
    assert example.text == "Q: sky? A:"
    assert example.turns == (Turn(None, " blue", (" green",)),)


def test_implicit_prompt_of_several_rejected_conversations() -> None:
    rejected = [[user("p"), assistant("b")], [user("p"), assistant("c")]]
    example = parse({"chosen": [user("p"), assistant("a")], "rejected": rejected})
    assert example.messages == (user("p"),)
    assert example.turns[0].rejected == ("b", "c")


def test_trl_extracts_the_same_prompt() -> None:
    from trl.data_utils import extract_prompt

    row = {
        "chosen": [user("p"), assistant("a"), user("q"), assistant("a2")],
        "rejected": [user("p"), assistant("a"), user("q"), assistant("b2")],
    }
    ours, theirs = parse(row), extract_prompt(row)
    assert list(ours.messages) == theirs["prompt"]
    assert ours.turns == (Turn(None, theirs["chosen"][0]["content"], (theirs["rejected"][0]["content"],)),)


def test_context_rows_keep_their_chunks() -> None:
    row = {"context": ["one", " ", "two"], "question": "q", "chosen": "a", "rejected": ["b", "c"]}
    example = parse(row | {"short_prompt": "one", "system": "s"})
    assert (example.chunks, example.system) == (("one", "two"), "s")
    assert example.turns == (Turn("q", "a", ("b", "c"), "one"),)
    assert parse(row | {"context": "all of it"}).chunks == ("all of it",)


def test_several_turns_over_one_context() -> None:
    row = {
        "context": "c",
        "questions": ["q1", "q2"],
        "chosens": ["a1", "a2"],
        "rejecteds": ["b1", ["b2"]],
        "short_prompts": ["s1", "s2"],
    }
    assert parse(row).turns == (Turn("q1", "a1", ("b1",), "s1"), Turn("q2", "a2", ("b2",), "s2"))


def test_answers_of_several_messages_are_turns() -> None:
    row = {
        "prompt": [user("p")],
        "chosen": [assistant("a1"), user("q"), assistant("a2")],
        "rejected": [assistant("b1"), user("q"), assistant("b2")],
    }
    assert parse(row).turns == (Turn(None, "a1", ("b1",)), Turn("q", "a2", ("b2",)))


def test_sft_rows_have_no_rejected() -> None:
    assert parse({"prompt": "p", "completion": "a"}).turns == (Turn(None, "a", ()),)
    example = parse({"messages": [user("p"), assistant("a"), user("q"), assistant("b")]})
    assert example.messages == (user("p"),)
    assert example.turns == (Turn(None, "a", ()), Turn("q", "b", ()))
    with pytest.raises(UserError, match="no rejected answer"):
        parse({"prompt": "p", "completion": "a"}, require_rejected=True)


def test_a_rejected_answer_equal_to_the_chosen_one_is_dropped() -> None:
    row = RawRow(0, "rows.jsonl:1", {"prompt": "p", "chosen": "a", "rejected": ["b", "a "]})
    parsed = parse_row(row)
    assert parsed.dropped == 1
    assert parsed.example.turns[0].rejected == ("b",)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "p", "rejected": "b"}, "column chosen or completion is missing"),
        ({"context": "c", "question": "q"}, "column chosen or completion is missing"),
        ({"prompt": "p", "chosen": " ", "rejected": "b"}, "column chosen has an empty answer"),
        ({"prompt": "p", "chosen": "a", "rejected": ["b", ""]}, "column rejected has an empty answer"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "column prompt is empty"),
        ({"prompt": "p", "chosen": "a", "rejected": ["a", "a"]}, "every rejected answer equals"),
        ({"chosen": "pa", "rejected": "pa"}, "every rejected answer equals"),
        ({"chosen": "a", "rejected": "b"}, "share no beginning"),
        ({"prompt": "p", "chosen": 3, "rejected": "b"}, "column chosen must hold an answer .* not int"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "column prompt must be a list of messages, not int"),
        ({"context": [1], "question": "q", "chosen": "a"}, "column context must be a string or a list"),
        ({"context": "c", "question": ["q"], "chosen": "a"}, "column question must be a string, not list"),
        ({"prompt": [{"role": "boss", "content": "p"}], "chosen": "a"}, "unknown role 'boss'"),
        ({"prompt": [user("p"), assistant("x")], "chosen": "a"}, "must end with a user's message"),
        (
            {"text": "t", "label": 1},
            r"a row of text alone is a document without a prompt or an answer: `align train method=lm`",
        ),
        (
            {"text": "t", "question": "q"},
            r"unknown layout with the columns text, question; the nearest is ",
        ),
        (
            {"context": "c", "questions": ["q"], "chosens": ["a", "b"], "rejecteds": ["c"]},
            r"different lengths \(questions 1, chosens 2, rejecteds 1, short_prompts 1\)",
        ),
        (
            {"context": "c", "questions": ["q", "r"], "chosens": ["a", "b"], "rejecteds": ["c", ["d", "e"]]},
            "as many rejected answers as the others, not 1, 2",
        ),
        (
            {
                "prompt": [user("p")],
                "chosen": [assistant("a"), user("q"), assistant("b")],
                "rejected": [assistant("a"), user("other"), assistant("b")],
            },
            "the same later questions",
        ),
    ],
)
def test_bad_rows_are_named(row: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=rf"^rows\.jsonl:1: .*{sentence}"):
        parse(row)


ROWS = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(5)]


def test_every_file_kind_gives_the_same_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", *ROWS)
    (tmp_path / "rows.json").write_text(json.dumps(ROWS))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for name in ("rows.jsonl", "rows.json", "rows.parquet", "saved"):
        examples = list(read_examples(str(tmp_path / name)))
        assert [example.text for example in examples] == [row["prompt"] for row in ROWS]
        assert [example.source for example in examples] == [f"{name}:{i + 1}" for i in range(5)]


def test_folder_and_saved_splits(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_lines(folder / "a.jsonl", *ROWS[:2])
    write_lines(folder / "b.jsonl", *ROWS[2:4])
    write_lines(folder / "test.jsonl", *ROWS[4:])
    DatasetDict(train=Dataset.from_list(ROWS[:4]), test=Dataset.from_list(ROWS[4:])).save_to_disk(
        tmp_path / "s"
    )
    for path in (folder, tmp_path / "s"):
        sources = open_sources(str(path))
        assert [row.values["prompt"] for row in read_rows(sources.train)] == ["p0", "p1", "p2", "p3"]
        assert [row.values["prompt"] for row in read_rows(sources.held_out)] == ["p4"]


def test_ranges_join_to_the_whole_and_keep_the_index(tmp_path: Path) -> None:
    """Blank lines hold a place, so that a row's index never depends on which process reads it."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), "", *map(json.dumps, ROWS[1:])]))
    (tmp_path / "more.json").write_text(json.dumps(ROWS))
    sources = [*open_sources(str(path)).train, *open_sources(str(tmp_path / "more.json")).train]
    whole = list(read_rows(sources))
    assert count_rows(sources) == 11
    assert [row.index for row in whole] == [0, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [row.source for row in whole[:2]] == ["rows.jsonl:1", "rows.jsonl:3"]
    for cut in range(12):
        assert [*read_rows(sources, 0, cut), *read_rows(sources, cut)] == whole


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.jsonl", '{"prompt": "p"\n', r"rows\.jsonl:1: malformed JSON"),
        ("rows.jsonl", '{"prompt":"p","chosen":"a"}\n\n{"a" 1}\n', r"rows\.jsonl:3: malformed JSON"),
        ("rows.jsonl", '{"prompt":"p","chosen":"a"}\n[1]\n', r"rows\.jsonl:2: a row must be an object"),
        ("rows.json", '[\n{"prompt": "p", "chosen": "a"},\n{"a" 1}]', r"rows\.json:3: malformed JSON"),
        ("rows.json", '{"a": 1}', "must hold a list of rows, JSON Lines or one row, not one object with a: "),
        ("rows.jsonl", "", "is empty"),
        ("rows.pdf", "a", "unknown ending"),
        ("rows.parquet", "nonsense", "cannot be read as Parquet"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=sentence):
        list(read_examples(str(tmp_path / name)))


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set"):
        open_sources(None)
    with pytest.raises(UserError, match="does not exist"):
        open_sources(str(tmp_path / "missing.jsonl"))
    with pytest.raises(UserError, match=r"holds no \.jsonl"):
        open_sources(str(tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no file or folder here, and the Hub did not give it"):
        open_sources("nobody/nothing")


@pytest.mark.skipif("ALIGN_DATA" not in os.environ, reason="ALIGN_DATA is not set")
def test_real_sharegpt_rows() -> None:
    path = Path(os.environ["ALIGN_DATA"]) / "preference" / "dpo_en_demo.json"
    examples = list(read_examples(str(path), require_rejected=True))
    assert len(examples) == 300
    assert all(example.messages[-1]["role"] == "user" for example in examples)
