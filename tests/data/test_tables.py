"""Tables: lists that stand in their fields as text, names that stand twice, and no more rows than are asked for."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from align.core.errors import UserError
from align.data import faults
from align.data.contents import printed_list
from align.data.faults import RowError
from align.data.formats import parse_row
from align.data.renaming import Renaming
from align.data.sources import open_sources, read_places, read_rows
from align.data.table_files import Parquet

CONTEXT = {"context": "c", "question": "q", "chosen": "yes"}
CHAT = [{"role": "user", "content": "p"}]


def from_csv(folder: Path, row: dict[str, Any], renaming: Renaming | None = None) -> Any:
    """The row, written as `csv` writes whatever it is given."""
    path = folder / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(row))
        table.writeheader()
        table.writerow(row)
    (raw,) = read_rows(open_sources(str(path)).train)
    if renaming is not None:
        raw = type(raw)(raw.index, raw.source, renaming(raw.values))
    return parse_row(raw).example


@pytest.mark.parametrize("printed", [str, json.dumps, lambda value: json.dumps(value, indent=1)])
def test_lists_in_a_field_are_lists(tmp_path: Path, printed: Any) -> None:
    row = {**CONTEXT, "context": printed(["it's", 'a "b"\n']), "rejected": printed(["no", "per,haps"])}
    example = from_csv(tmp_path, row)
    assert example.chunks == ("it's", 'a "b"\n') and example.turns[0].rejected == ("no", "per,haps")
    named = from_csv(tmp_path, {"bad": printed(["no"]), **CONTEXT}, Renaming.of({"rejected": "bad"}))
    assert named.turns[0].rejected == ("no",)
    columns = {"questions": ["q", "r"], "chosens": ["a", "b"], "rejecteds": [["c"], ["d"]]}
    example = from_csv(
        tmp_path, {"context": "c", **{name: printed(value) for name, value in columns.items()}}
    )
    assert [(turn.question, turn.chosen, turn.rejected) for turn in example.turns] == [
        ("q", "a", ("c",)),
        ("r", "b", ("d",)),
    ]


def test_alpacas_history_in_a_field(tmp_path: Path) -> None:
    row = {"instruction": "p", "output": "a", "history": str([["q", "b"]])}
    assert [message["content"] for message in from_csv(tmp_path, row).messages] == ["q", "b", "p"]
    assert len(from_csv(tmp_path, {**row, "history": "[]"}).messages) == 1


def test_answers_that_are_lists_stay_text(tmp_path: Path) -> None:
    """Of code: both answers are lists, so that neither column holds several."""
    row = {"prompt": "Sort it.", "chosen": "['a','b']", "rejected": "['b', 'a']"}
    (turn,) = from_csv(tmp_path, row).turns
    assert (turn.chosen, turn.rejected) == ("['a','b']", ("['b', 'a']",))
    (turn,) = from_csv(tmp_path, {**CONTEXT, "context": "[1] Smith et al.", "rejected": "[no]"}).turns
    assert turn.rejected == ("[no]",)


def test_in_other_files_such_a_text_is_text() -> None:
    from align.data.files import RawRow

    (turn,) = parse_row(RawRow(0, "r:1", {**CONTEXT, "rejected": "['no', 'perhaps']"})).example.turns
    assert turn.rejected == ("['no', 'perhaps']",)


@pytest.mark.parametrize(
    "row",
    [
        {**CONTEXT, "context": str(np.array(["one", "two"])), "rejected": "no"},
        {**CONTEXT, "rejected": str(np.array(["no", "perhaps"], dtype=object))},
        {"prompt": str(np.array([*CHAT, *CHAT])).replace(", {", "\n {"), "chosen": "a", "rejected": "b"},
    ],
)
def test_what_numpy_prints_is_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    """pandas writes columns of Parquet so: Python reads `['no' 'perhaps']` as the one text `noperhaps`."""
    with pytest.raises(RowError, match=r"numpy leaves out commas\): save the rows as Parquet") as caught:
        from_csv(tmp_path, row)
    assert caught.value.reason == faults.WRONG_TYPE


@pytest.mark.parametrize(
    "text", ["[]", "[1, 2]", "['a', 1]", "[link](x)", "['a'", '"a"', "['a'] and more", "[" * 9]
)
def test_no_list_of_texts(text: str) -> None:
    assert printed_list(text) is None


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("prompt,chosen,chosen,,\np,a,b,,\n")
    with pytest.raises(
        UserError, match=r"^rows\.csv has two columns called chosen, and only one can be read"
    ):
        list(read_places(open_sources(str(tmp_path / "rows.csv")).train))
    (tmp_path / "rows.csv").write_text("prompt,chosen,,\np,a,x,y\n")  # columns without a name are not read
    assert len(list(read_rows(open_sources(str(tmp_path / "rows.csv")).train))) == 1
    column = pa.array(["x"])
    pq.write_table(
        pa.Table.from_arrays([column] * 3, ["prompt", "chosen", "chosen"]), tmp_path / "rows.parquet"
    )
    with pytest.raises(UserError, match=r"^rows\.parquet has two columns called chosen"):
        list(read_places(open_sources(str(tmp_path / "rows.parquet")).train))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_key_that_stands_twice_is_one_bad_row(tmp_path: Path, name: str) -> None:
    rows = [
        '{"prompt": "p", "chosen": "a", "chosen": "b"}',
        '{"prompt": [{"role": "user", "content": "p", "content": "q"}]}',
        '{"prompt": "p", "a": {"x": 1}, "b": {"x": 1}}',
    ]
    (tmp_path / name).write_text("\n".join(rows) if name == "rows.jsonl" else f"[{', '.join(rows)}]")
    first, second, third = read_places(open_sources(str(tmp_path / name)).train)
    assert str(first).startswith(f"{name}:1: the key chosen stands twice in one object")
    assert isinstance(second, RowError) and "the key content" in str(second)
    assert not isinstance(third, RowError) and third.values["b"] == {"x": 1}


def test_no_more_of_a_row_group_is_decoded_than_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"prompt": [f"p{i}" for i in range(20_000)]}), tmp_path / "rows.parquet")
    decoded, iterate = [], pq.ParquetFile.iter_batches

    def counting(self: Any, *args: Any, **settings: Any) -> Any:
        for batch in iterate(self, *args, **settings):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    assert len(list(Parquet(tmp_path / "rows.parquet").read(5, 15))) == 10
    assert len(decoded) == 1
