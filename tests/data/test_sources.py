"""Kinds of file, folders, the Hub, and paths that are not there."""

from __future__ import annotations

import csv
import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from align.core.errors import AlignWarning, UserError
from align.data import json_files
from align.data.files import file_source
from align.data.sources import check_place, open_sources, read_places, read_rows
from tests.data.helpers import write_lines

ROWS = [{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(5)]


def prompts(path: Path | str, held_out: bool = False) -> list[str]:
    sources = open_sources(str(path))
    return [row.values["prompt"] for row in read_rows(sources.held_out if held_out else sources.train)]


def write_table(path: Path, rows: list[dict[str, Any]], *, delimiter: str = ",") -> None:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        table.writeheader()
        table.writerows(rows)


def test_more_kinds_of_file_give_the_same_rows(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "lines.json").write_text(f"\n{lines}")
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + lines.encode())
    for name, text in (
        ("rows.jsonl.gz", lines),
        ("rows.json.gz", json.dumps(ROWS)),
        ("LINES.JSON.GZ", lines),
    ):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    for name in ("rows.csv", "rows.csv.gz"):
        write_table(tmp_path / name, ROWS)
    write_table(tmp_path / "rows.tsv", ROWS, delimiter="\t")
    for path in tmp_path.iterdir():
        assert prompts(path) == [row["prompt"] for row in ROWS], path.name


def test_tables_keep_line_breaks_and_long_texts_and_name_the_line(tmp_path: Path) -> None:
    """A field may hold a million characters; a row is named by the line on which it begins."""
    rows = [{"prompt": 'one\n"two"\n', "system": ""}, {"prompt": "x" * 1_000_000, "system": "s"}]
    write_table(tmp_path / "rows.csv", rows)
    found = list(read_rows(open_sources(str(tmp_path / "rows.csv")).train))
    assert [row.values["prompt"] for row in found] == [row["prompt"] for row in rows]
    assert [row.values["system"] for row in found] == [None, "s"]
    assert [row.source for row in found] == ["rows.csv:2", "rows.csv:5"]
    (tmp_path / "bad.csv").write_text('a,b\n1\n"x\n')
    places = read_places(open_sources(str(tmp_path / "bad.csv")).train)
    assert str(next(places)) == "bad.csv:2: it has 1 field, and the first line names 2 columns."
    with pytest.raises(UserError, match=r"bad\.csv:3: malformed table"):
        next(places)
    (tmp_path / "latin.csv").write_bytes("a\né\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.csv:2: not UTF-8 text \(byte 0xe9"):
        list(read_places(open_sources(str(tmp_path / "latin.csv")).train))


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b'{"prompt": "p"}\n' * 9000, mtime=0)[:60]],
    ids=["no gzip", "cut short"],
)
def test_a_damaged_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    for name in ("rows.jsonl.gz", "rows.json.gz", "rows.csv.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is no whole gzip file"):
            list(read_rows(open_sources(str(tmp_path / name)).train))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz"])
def test_every_range_is_read_from_a_place_inside(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With places remembered every two rows, each range of rows is what it is of the whole."""
    monkeypatch.setattr(json_files, "_MARK_EVERY", 2)
    lines = [json.dumps(row, ensure_ascii=False) for row in [{"prompt": "é" * i} for i in range(7)]]
    text = f"[ {', '.join(lines)} ]" if name == "rows.json" else "\n\n".join(lines)
    content = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = file_source(tmp_path / name, "data.path")
    whole = list(source.read(0))
    assert len(whole) == 7
    for start in range(source.count() + 1):
        for stop in range(start, source.count() + 1):
            expected = [place for place in whole if start <= place[0] < stop]
            assert list(source.read(start, stop)) == expected


def test_a_bad_line_is_one_bad_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"prompt": "p"}\n{"a" 1}\n[1]\n"\xff"\n\n{"prompt": "q"}\n')
    found = list(read_places(open_sources(str(tmp_path / "rows.jsonl")).train))
    assert [str(row) if isinstance(row, UserError) else row.values["prompt"] for row in found] == [
        "p",
        "rows.jsonl:2: malformed JSON (Expecting ':' delimiter at column 6).",
        "rows.jsonl:3: a row must be an object with named columns, not a list.",
        "rows.jsonl:4: not UTF-8 text (byte 0xff).",
        "q",
    ]


def test_parquet_reads_wanted_columns_in_any_range(tmp_path: Path) -> None:
    """Row groups of three and batches: every range is the same as of the whole; no other column is decoded."""
    rows = [{"prompt": f"p{i}", "date": 10**15} for i in range(8)]
    table = pa.Table.from_pylist(rows, schema=pa.schema({"prompt": pa.string(), "date": pa.timestamp("ms")}))
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=3)
    source = file_source(tmp_path / "rows.parquet", "data.path", lambda name: name == "prompt")
    for start in range(9):
        for stop in range(start, 9):
            found = [values for _, _, values in source.read(start, stop)]
            assert found == [{"prompt": f"p{i}"} for i in range(start, stop)]


# ---- folders


def test_files_are_held_out_by_their_whole_name(tmp_path: Path) -> None:
    """test.jsonl, its shards and test_prefs beside train_prefs are; topics that begin with such a word are not."""
    names = {
        "train_prefs-00000-of-00001": False,
        "test_prefs-00000-of-00001": True,
        "validation": True,
        "dev-00001-of-00002": True,
        "dev-tools": False,
        "test_driven_development": False,
    }
    for i, name in enumerate(names):
        write_lines(tmp_path / f"{name}.jsonl", {"prompt": name, "i": i})
    with pytest.warns(AlignWarning, match=r"dev-tools\.jsonl, test_driven_development\.jsonl are trained on"):
        assert set(prompts(tmp_path)) == {name for name, held in names.items() if not held}
    with pytest.warns(AlignWarning):
        assert set(prompts(tmp_path, held_out=True)) == {name for name, held in names.items() if held}


def test_what_stands_beside_rows_is_not_read(tmp_path: Path) -> None:
    """A Hub download, and what `align synthesize` keeps of its calls."""
    hub, made = tmp_path / "hub", tmp_path / "made"
    for folder in (hub / "data", hub / ".cache", made / "work"):
        folder.mkdir(parents=True)
    for name in ("dataset_infos.json", "dataset_info.json", ".cache/x.json"):
        (hub / name).write_text('{"default": {}}')
    write_lines(hub / "data" / "train-00000-of-00001.jsonl", *ROWS[:2])
    write_lines(made / "work" / "answers-0000.jsonl", {"digest": "d", "text": "t"})
    write_lines(made / "train.jsonl", *ROWS[:3])
    (made / "summary.json").write_text("{}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (prompts(hub), prompts(made)) == (["p0", "p1"], ["p0", "p1", "p2"])
    (made / "summary.json").unlink()  # a folder of somebody's own: `work` may hold rows
    assert len(list(read_rows(open_sources(str(made)).train))) == 4


# ---- the Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data sets one/plain (train, test) and two/subsets (main and small, each with splits a and b)."""
    plain = DatasetDict(train=Dataset.from_list(ROWS[:2]), test=Dataset.from_list(ROWS[2:3]))
    subsets = {
        name: DatasetDict(
            a=Dataset.from_list([{"prompt": f"{name} a"}]), b=Dataset.from_list([{"prompt": f"{name} b"}])
        )
        for name in ("main", "small")
    }

    def load(name: str, subset: str | None = None) -> DatasetDict:
        if name == "one/plain" and subset in (None, "default"):
            return plain
        if name == "two/subsets" and subset in subsets:
            return subsets[subset]
        raise ValueError(f"BuilderConfig {subset!r} not found.")

    known = {"one/plain": ["default"], "two/subsets": list(subsets)}
    monkeypatch.setattr("datasets.load_dataset", load)
    monkeypatch.setattr("datasets.get_dataset_config_names", lambda name: known[name])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("one/plain", ["p0", "p1"]),
        ("one/plain:test", ["p2"]),
        ("one/plain:default:test", ["p2"]),
        ("two/subsets:small:b", ["small b"]),
        ("two/subsets:main:a", ["main a"]),
    ],
)
def test_subsets_and_splits_of_the_hub(hub: None, path: str, expected: list[str]) -> None:
    assert prompts(path) == expected


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("two/subsets", r"has the subsets main, small: name one, data\.path=two/subsets:SUBSET"),
        ("two/subsets:smal", r"did you mean small"),
        ("two/subsets:small", r"two/subsets:small has the splits a, b and none is called train"),
        ("two/subsets:small:c", "there is no split c; the data set has: a, b"),
        ("two/subsets:tiny:a", "two/subsets:tiny is no file or folder here, and the Hub did not give it"),
        ("one/plain:dev", "there is no split dev; the data set has: train, test"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: None, path: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        open_sources(path)


def test_a_missing_path_is_looked_for_here_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """outputs/rows beside a folder outputs is a path; with a split behind it, it is a Hub id."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    with pytest.raises(UserError, match=r"outputs/rows does not exist: it was looked for here"):
        check_place("outputs/rows")
    write_lines(tmp_path / "outputs" / "rows.jsonl", *ROWS)
    with pytest.raises(
        UserError, match=r"outputs/rows does not exist \(did you mean outputs/rows\.jsonl\?\)"
    ):
        check_place("outputs/rows")
    assert check_place("outputs/rows:train") == "outputs/rows:train"
    assert check_place("somebody/rows") == "somebody/rows"
    with pytest.raises(
        UserError, match=r"outputs/row\.jsonl does not exist \(did you mean outputs/rows\.jsonl\?\)"
    ):
        check_place("outputs/row.jsonl")
