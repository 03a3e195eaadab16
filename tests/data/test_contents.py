"""What columns hold, as people's files have it: bytes, stored conversations, parts, nulls, labels, broken text."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.core.errors import UserError
from align.data import faults
from align.data.contents import stored_messages
from align.data.dataset import load_preference_data
from align.data.examples import Turn
from align.data.faults import RowError
from align.data.files import RawRow
from align.data.formats import parse_row, read_examples
from align.data.renaming import check_no_media
from align.data.settings import DataSettings, PositionSettings
from tests.data.helpers import byte_tokenizer


def parse(row: dict[str, Any], **options: Any) -> Any:
    return parse_row(RawRow(0, "rows.jsonl:1", row), **options).example


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


PAIR = {"chosen": "a", "rejected": "b"}
CHAT = [{"role": "user", "content": "p"}]
TURNS = (Turn(None, "a", ("b",)),)


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "p", **PAIR},
        {"instruction": "p", "input": "", "system": None, **PAIR},
        {"instruction": "p", "input": " ", "system": "", "history": [], **PAIR},
        {"conversations": [{"from": "human", "value": "p"}], "system": "", **PAIR},
        {
            "prompt": [user([{"type": "text", "text": "p"}])],
            "chosen": [assistant([{"text": "a"}])],
            "rejected": ["b"],
        },
        {"prompt": [user(["p", None])], **PAIR},
        {"prompt": [user(b"p")], "chosen": b"a", "rejected": [b"b", None]},
        {"prompt": CHAT, "chosen": "a", "rejected": ["b", None, None]},
        {"prompt": [*CHAT, None], "chosen": [assistant("a"), None], "rejected": [[assistant("b")], None]},
        {"prompt": [{"role": None, "content": None, "from": "human", "value": "p"}], **PAIR},
        {"prompt": [{"role": "user", "content": "p", "from": None, "value": None}], **PAIR},
        {"prompt": json.dumps(CHAT), **PAIR},
        {"chosen": json.dumps([*CHAT, assistant("a")]), "rejected": json.dumps([*CHAT, assistant("b")])},
        {"chosen": str([*CHAT, assistant("a")]), "rejected": [str([*CHAT, assistant("b")])]},
        {
            "prompt": json.dumps(CHAT),
            "chosen": json.dumps(assistant("a")),
            "rejected": json.dumps([assistant("b")]),
        },
    ],
)
def test_one_question_with_two_answers_in_many_spellings(row: dict[str, Any]) -> None:
    """All mean: the user asks p, a is chosen and b rejected, without a system message."""
    example = parse(row, require_rejected=True)
    assert (list(example.messages), example.turns, example.system) == (CHAT, TURNS, None)


def test_alpaca_rows_have_input_history_and_system() -> None:
    """As LLaMA-Factory reads them: instruction, line break, input; earlier pairs before."""
    example = parse(
        {"instruction": "Add.", "input": "1 2", "history": [["Hi", "Ho"]], "system": "s", "output": "3"}
    )
    contents = [(message["role"], message["content"]) for message in example.messages]
    assert contents == [("system", "s"), ("user", "Hi"), ("assistant", "Ho"), ("user", "Add.\n1 2")]
    assert example.turns == (Turn(None, "3", ()),)
    for history in (["Hi"], [["Hi"]], 1, True, {"a": "b"}, [[1, 2]]):
        with pytest.raises(UserError, match="column history must be a list of pairs"):
            parse({"instruction": "Add.", "history": history, "output": "3"})


@pytest.mark.parametrize(
    "marker", ["[INST]q[/INST]", "<|im_start|>user\nq", "<start_of_turn>user\nq", "<｜User｜>q"]
)
def test_an_instruction_with_a_templates_markers_is_the_whole_prompt(marker: str) -> None:
    assert parse({"instruction": marker, **PAIR}).text == marker


def test_nulls_at_the_end_of_turns_are_padding() -> None:
    row = {
        "context": ["c", None],
        "questions": ["q", None],
        "chosens": ["a", None],
        "rejecteds": [["b", None], None],
    }
    example = parse(row)
    assert (example.chunks, example.turns) == (("c",), (Turn("q", "a", ("b",)),))


@pytest.mark.parametrize(
    "text",
    [
        "p",
        "[1, 2]",
        '{"role": "user"}',
        '[{"role": "user", "content": "p"}',
        '{"a": [{"role": "user", "content": ""}]}',
    ],
)
def test_text_that_is_no_conversation_stays_text(text: str) -> None:
    assert stored_messages(text) is None


@pytest.mark.parametrize(
    ("row", "reason", "sentence"),
    [
        ({"prompt": "p", "completion": "a", "label": False}, faults.BAD_LABEL, "label is false"),
        ({"prompt": "p", "completion": "a", "label": 0}, faults.BAD_LABEL, "label is false"),
        ({"prompt": "p", "completion": "a", "label": "False"}, faults.BAD_LABEL, "label is false"),
        ({"messages": [*CHAT, assistant("a")], "label": False}, faults.BAD_LABEL, "label is false"),
        ({"conversations": [*CHAT, assistant("a")], "kto_tag": False}, faults.BAD_LABEL, "kto_tag is false"),
        (
            {"context": "c", "question": "q", "completion": "a", "label": False},
            faults.BAD_LABEL,
            "label is false",
        ),
        (
            {"prompt": "p", "completion": "a", "label": "good"},
            faults.WRONG_TYPE,
            "true or false, and is 'good'",
        ),
        (
            {"prompt": "p \ud83d", **PAIR},
            faults.NOT_TEXT,
            "character 3 of 'p \\\\ud83d' is half of a surrogate pair",
        ),
        ({"prompt": CHAT, **PAIR, "system": "\udc00"}, faults.NOT_TEXT, "half of a surrogate pair"),
        ({"context": ["é", "\ud800"], "question": "q", **PAIR}, faults.NOT_TEXT, "half of a surrogate pair"),
        ({"\ud800": 1}, faults.UNKNOWN_LAYOUT, "unknown layout with the columns"),
        ({"prompt": [{"role": ["user"], "content": "p"}], **PAIR}, faults.MESSAGES, "unknown role"),
        ({"prompt": [{"role": {}, "content": "p"}], **PAIR}, faults.MESSAGES, "unknown role"),
        ({"prompt": [user([{"type": "image", "url": "u"}])], **PAIR}, faults.NOT_TEXT, r"no text \(image\)"),
        ({"prompt": [user([{"type": "text", "text": "p"}, 7])], **PAIR}, faults.NOT_TEXT, r"no text \(int\)"),
        ({"prompt": b"\xff", **PAIR}, faults.WRONG_TYPE, "not bytes that are no UTF-8 text"),
        ({"prompt": CHAT, "chosen": "a", "rejected": [None]}, faults.NO_REJECTED, "no rejected answer"),
        (
            {"prompt": CHAT, "chosen": "a", "rejected": ["b", None, "c"]},
            faults.EMPTY,
            "null before another entry",
        ),
        ({"prompt": [None, *CHAT], "chosen": "a", "rejected": "b"}, faults.EMPTY, "prompt has a null before"),
        ({"prompt": "p", "chosen": [None, assistant("a")], "rejected": "b"}, faults.EMPTY, "null before"),
        ({"context": ["c", None, "d"], "question": "q", **PAIR}, faults.EMPTY, "context has a null before"),
        (
            {"context": "c", "questions": ["q", None, "r"], "chosens": ["a"]},
            faults.WRONG_TYPE,
            "list of strings",
        ),
        ({"prompt": "p", "chosen": [None], "rejected": "b"}, faults.WRONG_TYPE, "must hold an answer"),
        (
            {"context": "c", "question": "q", "chosen": "", "rejected": "b"},
            faults.EMPTY,
            "has an empty answer",
        ),
    ],
)
def test_why_a_row_cannot_be_used(row: dict[str, Any], reason: str, sentence: str) -> None:
    needs = reason not in (faults.BAD_LABEL, faults.WRONG_TYPE)
    with pytest.raises(RowError, match=rf"^rows\.jsonl:1: .*{sentence}") as caught:
        parse(row, require_rejected=needs)
    assert caught.value.reason == reason
    str(caught.value).encode()


@pytest.mark.parametrize("label", [True, 1, "true"])
def test_a_label_that_is_true_is_an_answer_to_learn(label: Any) -> None:
    assert parse({"prompt": "p", "completion": "a", "label": label}).turns[0].chosen == "a"
    assert parse({"prompt": "p", **PAIR, "label": 5}).turns == TURNS  # of a pair it says nothing


def test_images_are_refused_and_can_be_hidden() -> None:
    check_no_media(RawRow(0, "r:1", {"prompt": "p", "images": [], "image": None}))
    with pytest.raises(RowError, match=r"column images is no text.*data\.columns=\{images: null\}"):
        check_no_media(RawRow(0, "r:1", {"prompt": "p", "images": [{"bytes": b"x"}]}))


def _deep(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (_deep(100_000), "malformed JSON .nested too deeply"),
        (f'[{{"role": {_deep(800)}, "content": "p"}}]', "unknown role"),
        ("9" * 5000, "must be a list of messages, not float"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_that_no_library_likes_ends_in_a_sentence(
    tmp_path: Path, name: str, value: str, sentence: str
) -> None:
    row = f'{{"prompt": {value}, "chosen": "a", "rejected": "b"}}'
    (tmp_path / name).write_text(f"[{row}]" if name == "rows.json" else row)
    with pytest.raises(UserError, match=rf"^{name}:1: .*{sentence}"):
        list(read_examples(str(tmp_path / name)))
    assert sys.getrecursionlimit() < 10_000


def test_a_number_of_thousands_of_digits_that_nobody_reads_does_no_harm(tmp_path: Path) -> None:
    row = f'{{"id": {"9" * 5000}, "prompt": "p", "chosen": "a", "rejected": "b"}}'
    (tmp_path / "rows.jsonl").write_text(f"{row}\n{row}\n")
    (tmp_path / "rows.json").write_text(f"[{row}, {row}]")
    for name in ("rows.jsonl", "rows.json"):
        assert [example.text for example in read_examples(str(tmp_path / name))] == ["p", "p"]


def test_arrow_columns_as_libraries_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas merged with nulls, bytes for text, and a date that Python does not know in a column nobody reads."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    rows = [
        {
            "conversations": [{"from": None, "value": None, "role": "user", "content": b"p"}],
            "chosen": {"from": "gpt", "value": "a", "role": None},
            "rejected": {"from": None, "value": None, "role": "assistant", "content": "b"},
        }
    ]
    table = pa.Table.from_pylist(rows).append_column("made", pa.array([10**15], pa.timestamp("ms")))
    pq.write_table(table, tmp_path / "rows.parquet")
    settings = DataSettings(path=str(tmp_path / "rows.parquet"), eval_size=0)
    data = load_preference_data(settings, byte_tokenizer(), positions=PositionSettings(), seed=0)
    assert data.counts["rows"] == 1
    with pytest.raises(
        UserError, match=r"rows\.parquet: column made holds a value that Python does not know"
    ):
        list(read_examples(str(tmp_path / "rows.parquet")))  # of all columns
