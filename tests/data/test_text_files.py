"""Text files as people write them: one object under .json, other delimiters, other encodings."""

from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from align.core.errors import AlignWarning, UserError
from align.data.files import RawRow
from align.data.formats import parse_row
from align.data.sources import open_sources, read_rows
from align.data.table_files import Csv
from tests.data.helpers import write_lines

ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}


def rows(path: Path) -> list[RawRow]:
    return list(read_rows(open_sources(str(path)).train))


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ROW, [ROW]),
        (
            {"messages": [{"role": "user", "content": "p"}]},
            [{"messages": [{"role": "user", "content": "p"}]}],
        ),
        ({"data": [ROW, ROW | {"prompt": "q"}]}, [ROW, ROW | {"prompt": "q"}]),
        (
            {name: {"0": text, "1": text + text} for name, text in ROW.items()},  # pandas' to_json
            [ROW, {name: text + text for name, text in ROW.items()}],
        ),
    ],
    ids=["row", "conversation", "wrapped", "pandas"],
)
def test_one_object_holds_rows(tmp_path: Path, content: Any, expected: list[Any], indent: int | None) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content, indent=indent))
    found = rows(path)
    assert [row.values for row in found] == expected
    assert [row.source for row in found] == [f"rows.json:{i + 1}" for i in range(len(expected))]
    (source,) = open_sources(str(path)).train
    assert source.count() == len(expected) and list(source.read(1)) == list(source.read(0))[1:]


@pytest.mark.parametrize(
    ("content", "cure"),
    [
        ({"version": 1, "data": [ROW]}, "write the list under data into a file of its own"),
        ({"train": [ROW], "test": [ROW]}, "write the list under train into a file of its own"),
        ({"columns": ["prompt"], "index": [0], "data": [["p"]]}, "orient='records', lines=True"),
        ({"prompt": {"a": "p"}, "chosen": {"a": "c"}}, "orient='records', lines=True"),
        ({"prompt": ["p", "q"], "chosen": ["a", "b"], "rejected": ["c", "d"]}, "its columns are lists"),
        ({"license": "mit"}, "move a file that holds none out of the folder"),
    ],
)
def test_other_objects_are_refused_with_a_cure(tmp_path: Path, content: Any, cure: str) -> None:
    """By its path in a folder, so that one stray file is found."""
    folder = tmp_path / "data"
    (folder / "a").mkdir(parents=True)
    write_lines(folder / "rows.jsonl", ROW)
    (folder / "a" / "meta.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError, match=r"^a/meta\.json: a \.json file must hold .* not one object with "
    ) as refused:
        rows(folder)
    assert cure in str(refused.value)


@pytest.mark.parametrize("delimiter", [";", "\t"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_a_table_says_by_its_first_line_what_separates_it(tmp_path: Path, delimiter: str, name: str) -> None:
    lines = [delimiter.join(ROW), delimiter.join(["p, q", "a", "b"])]
    content = "\n".join(lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    kind = "semicolons" if delimiter == ";" else "tabs"
    with pytest.warns(AlignWarning, match=rf"{name}: its columns are separated by {kind}, as its first line"):
        (row,) = rows(tmp_path / name)
    assert row.values == ROW | {"prompt": "p, q"}


@pytest.mark.parametrize("header", ["prompt,a;b", "prompt", "a;b\tc", '"a;b'])
def test_a_delimiter_is_not_guessed(tmp_path: Path, header: str) -> None:
    """Its own stands there, none does, or two others do."""
    (tmp_path / "rows.csv").write_text(f"{header}\n")
    (source,) = open_sources(str(tmp_path / "rows.csv")).train
    assert isinstance(source, Csv) and source.delimiter == ","


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.tsv", "rows.jsonl.gz"])
def test_another_encoding_is_told_once_for_the_file(tmp_path: Path, encoding: str, name: str) -> None:
    if encoding == "utf-32" and name.endswith("gz"):
        encoding = "utf-16"
    content = (json.dumps(ROW) + "\n" + json.dumps(ROW)).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    kind = "UTF-32" if encoding == "utf-32" else "UTF-16"
    with pytest.raises(UserError, match=rf"^{name} is {kind} text, .*: save it as UTF-8\.$"):
        rows(tmp_path / name)


def test_a_bad_byte_of_a_table_is_told_with_its_line(tmp_path: Path) -> None:
    content = 'prompt,chosen\np,"two\nlines"\ncafé,a\n'.encode("latin-1")
    (tmp_path / "rows.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"^rows\.csv:4: not UTF-8 text \(byte 0xe9\): save it as UTF-8\.$"):
        rows(tmp_path / "rows.csv")


def test_a_byte_order_mark_is_no_other_encoding(tmp_path: Path) -> None:
    for name, text in (
        ("rows.csv", "prompt,chosen\np,a\n"),
        ("rows.jsonl", '{"prompt": "p", "chosen": "a"}\n'),
    ):
        (tmp_path / name).write_bytes(text.encode("utf-8-sig"))
        with warnings.catch_warnings(action="error"):
            assert rows(tmp_path / name)[0].values == {"prompt": "p", "chosen": "a"}


def test_a_system_message_that_is_null_is_absent() -> None:
    """In a prompt, in a conversation, and in answers that hold their prompt."""
    null, user = {"role": "system", "content": None}, {"role": "user", "content": "p"}
    yes, no = ({"role": "assistant", "content": text} for text in ("yes", "no"))
    for row in (
        {"prompt": [null, user], "chosen": "yes", "rejected": "no"},
        {"conversations": [{"from": "system", "value": None}, user], "chosen": yes, "rejected": no},
        {"messages": [null, user, yes]},
        {"chosen": [null, user, yes], "rejected": [null, user, no]},
    ):
        example = parse_row(RawRow(0, "rows.jsonl:1", row)).example
        assert example.messages == (user,) and example.turns[0].chosen == "yes"
    with pytest.raises(UserError, match="content is no string but NoneType"):
        parse_row(RawRow(0, "rows.jsonl:1", {"messages": [{"role": "user", "content": None}, yes]}))
