"""Rows without a column prompt, columns that nobody reads, and layouts that are nearly known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from align.core.errors import UserError
from align.data.answer_scores import upside_down
from align.data.checks import check_rows
from align.data.dataset import PreferenceData, load_preference_data
from align.data.examples import Example
from align.data.files import RawRow
from align.data.formats import parse_row
from align.data.notices import notices
from align.data.settings import DataSettings, PositionSettings
from align.data.unread import unused_short
from tests.data.helpers import byte_tokenizer, write_lines

PAIR = {"chosen": "The answer is 0.", "rejected": "The answer is 1."}
USER = [{"role": "user", "content": "q?"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


def parsed(row: dict[str, Any]) -> Example:
    return parse_row(RawRow(0, "rows.jsonl:1", row)).example


def load(path: Path | str, **settings: Any) -> PreferenceData:
    return load_preference_data(
        DataSettings(path=str(path), eval_size=0, **settings),
        byte_tokenizer(),
        positions=PositionSettings(),
        seed=0,
    )


def table(path: Path, *rows: dict[str, Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


# ---- the prompt


@pytest.mark.parametrize(
    "name", ["promt", "Prompt", " prompt", "query", "input", "problem", "user", "text", "prompts"]
)
@pytest.mark.parametrize("value", ["What is 0+0?", USER])
def test_a_column_that_may_be_the_prompt_is_not_passed_over(name: str, value: Any) -> None:
    """`The answer is`, what the answers begin with in common, is not taken for the prompt."""
    named = f"'{name}'" if name.startswith(" ") else name
    with pytest.raises(
        UserError, match=rf"column {named} is not read, and the prompt would be .*The answer is"
    ):
        parsed({name: value, **PAIR})
    with pytest.raises(UserError, match=rf"data\.columns={{prompt: {named}}} reads it as the prompt"):
        parsed({name: value, "chosen": "Yes", "rejected": "No"})


def test_a_null_prompt_is_not_guessed() -> None:
    with pytest.raises(
        UserError, match=r"column prompt is null, .*data\.columns={prompt: null} that the answers"
    ):
        parsed({"prompt": None, **PAIR})
    with pytest.raises(UserError, match=r"column query is not read, .*data\.columns={prompt: query}"):
        parsed({"prompt": None, "query": "What is 0+0?", **PAIR})
    both = [*USER, {"role": "assistant", "content": "a"}], [*USER, {"role": "assistant", "content": "b"}]
    assert parsed({"prompt": None, "chosen": both[0], "rejected": both[1]}).messages == tuple(USER)
    assert not parsed(
        {"prompt": "q?", "chosen": both[0], "rejected": both[1]}
    ).inferred  # UltraFeedback's rows


@pytest.mark.parametrize(
    "extra",
    [{}, {"id": "7"}, {"source": "a book"}, {"prompt_id": "9c1"}, {"text": ""}, {"query": "The answer"}],
)
def test_other_columns_leave_the_answers_their_prompt(extra: dict[str, Any]) -> None:
    """No text, another name, or a part of what the answers begin with."""
    example = parsed({**PAIR, **extra})
    assert example.text == "The answer is" and example.inferred


def test_a_question_beside_answers_is_the_users_message() -> None:
    """Intel's Orca pairs: `system`, `question`, `chosen`, `rejected`."""
    example = parsed({"system": "Be brief.", "question": "What is 0+0?", **PAIR})
    assert [one["content"] for one in example.messages] == ["Be brief.", "What is 0+0?"]
    assert example.turns[0].chosen == PAIR["chosen"] and not example.inferred
    answers = {name: [{"role": "assistant", "content": text}] for name, text in PAIR.items()}
    assert parsed({"question": "What is 0+0?", **answers}).messages[-1]["content"] == "What is 0+0?"
    whole = {"question": "Q?", "chosen": "Human: Q? A: yes", "rejected": "Human: Q? A: no"}
    assert parsed(whole).text == "Human: Q? A:"


def test_how_many_prompts_are_inferred_is_said(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}, PAIR]
    data = load(write_lines(tmp_path / "rows.jsonl", *rows))
    (said,) = notices(data, window=None)
    assert said.startswith(
        "1 of 2 rows (the first is rows.jsonl:2) have no column prompt: theirs is what their answers begin"
    )


def test_any_column_may_be_hidden(tmp_path: Path) -> None:
    """Hidden, it is neither a prompt nor told; one that no row has is a slip."""
    rows = write_lines(tmp_path / "rows.jsonl", {"text": "t", **PAIR})
    for path in (rows, table(tmp_path / "rows.parquet", {"text": "t", **PAIR})):
        with pytest.raises(UserError, match="column text is not read"):
            load(path)
        (said,) = notices(load(path, columns={"text": None}), window=None)
        assert "no column prompt" in said
        with pytest.raises(UserError, match=r"data\.columns\.txt=null: no such column .*did you mean text\?"):
            load(path, columns={"txt": None})


# ---- what nobody reads


@pytest.mark.parametrize(
    "extra",
    [
        {"system_prompt": "s"},
        {"score_chosen": 9.0, "score_rejected": 1.0},
        {"messages": USER},
        {"completion": "c"},
        {"label": 0},
        {"margin": 2.5},
        {"Unnamed: 0": 3},
        {"question": "q", "context_id": 4},
    ],
)
def test_columns_that_nobody_reads_are_named(tmp_path: Path, extra: dict[str, Any]) -> None:
    """Of text files and of tables, from the cache as at first; null and empty ones hold nothing."""
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "id": "1"}
    other = row | {"prompt": "o"}
    path = write_lines(tmp_path / "rows.jsonl", row | extra, other | extra, row | dict.fromkeys(extra), row)
    for _ in range(2):
        (said,) = notices(load(path), window=None)
        assert said.startswith("Not read: ") and said.count("(2 rows)") == len(extra)
        assert all(name in said for name in extra)
    (said,) = notices(load(table(tmp_path / "rows.parquet", row | extra, other | extra)), window=None)
    assert said.count("(2 rows)") == len(extra) and all(name in said for name in extra)


def test_an_index_without_a_name_is_told(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(",prompt,chosen,rejected\n0,p,a,b\n")
    assert notices(load(tmp_path / "rows.csv"), window=None) == ["Not read: a column without a name (1 row)."]


def test_rows_of_our_pipelines_and_few_names_are_told(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    made = row | {"settings": {"pipeline": "logo"}, "document": {"id": "d"}, "score": 3}
    assert notices(load(write_lines(tmp_path / "made.jsonl", made)), window=None) == []
    many = row | {f"extra_{i}": i + 1 for i in range(20)}
    (said,) = notices(load(write_lines(tmp_path / "many.jsonl", many)), window=None)
    assert said.count("(1 row)") == 8 and said.endswith(" and 12 more.")


def test_scores_that_contradict_the_pair_are_found(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    scores = {"score_chosen": 1.0, "score_rejected": 9.0}
    for path in (
        write_lines(tmp_path / "rows.jsonl", row, row | {"prompt": "q"} | scores),
        table(tmp_path / "rows.parquet", row | dict.fromkeys(scores), row | {"prompt": "q"} | scores),
    ):
        data = load(path)
        (finding,) = check_rows(data, window=None)
        assert finding.kind == "scores" and "score_chosen=1 < score_rejected=9" in finding.message
        assert ":2: " in finding.message
        assert [
            line for line in notices(data, window=None) if line.startswith("Scores of 1 of 2 rows say that")
        ]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"chosen_rating": "2", "rejected_rating": "4.5"}, "chosen_rating=2 < rejected_rating=4.5"),
        ({"chosen-rating": 2, "rejected-rating": 2}, ""),
        ({"margin": -1}, "margin=-1 < 0"),
        ({"score_chosen": None, "score_rejected": 9}, ""),
        ({"score_chosen": "good", "score_rejected": "bad"}, ""),
        ({"rating": [1, 9]}, ""),  # of the generations, in their own order
    ],
)
def test_scores_by_their_names(values: dict[str, Any], said: str) -> None:
    assert upside_down(values) == said


def test_short_contexts_that_a_method_does_not_read_are_told(tmp_path: Path) -> None:
    row = {"context": "long", "question": "q", "chosen": "a", "rejected": "b", "short_prompt": "lo"}
    (said,) = unused_short(load(write_lines(tmp_path / "rows.jsonl", row)))
    assert said.endswith("of 1 row.")
    assert unused_short(load(write_lines(tmp_path / "bare.jsonl", row | {"short_prompt": None}))) == []


# ---- layouts that are nearly known


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        (
            "promt completoin",
            r"nearest is prompt \+ completion: data\.columns={prompt: promt, completion: completoin}",
        ),
        ("question better worse", r"data\.columns={prompt: question, chosen: better, rejected: worse}"),
        (
            "a b",
            r"the columns a, b: name them as a layout does, such as data\.columns={prompt: …, chosen: …",
        ),
        ("question response_0 response_1", r"the columns question, response_0, response_1; the nearest is "),
        (
            "prompt response_0 response_1",
            r"completion is missing beside prompt, response_0, .*columns={chosen: …}",
        ),
        (
            "source instruction completions",
            r"missing beside source, instruction, .*={completion: completions} names",
        ),
        ("prompt preferred rejected", r"data\.columns={chosen: preferred} names it"),
    ],
)
def test_a_layout_that_is_nearly_known_is_named(columns: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        parsed(dict.fromkeys(columns.split(), "text"))
    assert len(str(refused.value)) < 300


def test_a_rejected_answer_of_another_name_is_named() -> None:
    row = RawRow(0, "rows.jsonl:1", {"prompt": "p", "chosen": "a", " rejected": "b"})
    with pytest.raises(
        UserError, match=r"no rejected answer: .*data\.columns={rejected: ' rejected'} names "
    ):
        parse_row(row, require_rejected=True)


def test_names_with_spaces_are_quoted() -> None:
    row = {"prompt": "p", " chosen": "a", " rejected": "b"}
    with pytest.raises(UserError, match=r"data\.columns={chosen: ' chosen'} names it"):
        parsed(row)
