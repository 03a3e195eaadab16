"""What a command writes is never what it reads, nor what somebody else has left."""

from __future__ import annotations

import json
import os

import pytest

from align import inspect, plan
from align.core.errors import UserError
from align.runs.outputs import begins_with, check_folder, check_own, is_json, is_json_lines, output_file
from align.runs.ranking_page import HEAD
from align.runs.ranking_page import page as report_page

FINDING = {"kind": "leak", "reason": "", "message": "rows.jsonl:1"}


def own(path):
    return is_json_lines(path, inspect.FIELDS)


def test_a_new_file_an_empty_one_and_an_earlier_list_are_taken(tmp_path):
    assert output_file("findings", str(tmp_path / "deep" / "new"), inputs={}, own=own)
    (tmp_path / "empty").touch()
    (tmp_path / "earlier").write_text(json.dumps(FINDING) + "\n" + json.dumps(FINDING) + "\n")
    for name in ("empty", "earlier"):
        path = tmp_path / name
        assert output_file("findings", str(path), inputs={}, own=own) == path
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "text",
    [
        "notes\n",
        '{"prompt": "a", "chosen": "b", "rejected": "c"}\n',
        json.dumps(FINDING) + "\nnotes\n",
        "[" * 100_000,
        "\n",
        "3\n",
    ],
    ids=["notes", "rows", "notes below findings", "brackets", "a blank line", "a number"],
)
def test_a_file_of_somebody_elses_is_refused_and_stays(tmp_path, text):
    path = tmp_path / "precious"
    path.write_text(text)
    with pytest.raises(UserError, match="is there and was not written by this command"):
        output_file("findings", str(path), inputs={}, own=own)
    assert path.read_text() == text


def test_bytes_that_are_no_text_are_somebody_elses(tmp_path):
    path = tmp_path / "picture"
    path.write_bytes(b"\x89PNG\xff")
    assert not is_json(path, ("a",)) and not own(path)


def test_an_input_is_refused_under_any_name(tmp_path, monkeypatch):
    """Also where it is an earlier list of findings, and where it is not there yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(FINDING) + "\n")
    (tmp_path / "link").symlink_to(tmp_path / "rows.jsonl")
    for value in ("rows.jsonl", "./rows.jsonl", str(tmp_path / "rows.jsonl"), "link"):
        with pytest.raises(UserError, match="is a file that this command reads"):
            output_file("findings", value, inputs={"data": {"mix": [{"path": "rows.jsonl"}]}}, own=own)
    with pytest.raises(UserError, match="is a file that this command reads"):
        output_file("json", "new", inputs={"a": [["new"]]}, own=own)


def test_a_file_among_the_rows_would_be_read_as_rows(tmp_path):
    (tmp_path / "rows").mkdir()
    inputs = {"data": {"path": str(tmp_path / "rows"), "chunk_separator": "", "date": "/"}}
    with pytest.raises(UserError, match="whose files this command reads"):
        output_file("findings", str(tmp_path / "rows" / "deep" / "new.jsonl"), inputs=inputs, own=own)
    assert output_file("findings", str(tmp_path / "new.jsonl"), inputs=inputs, own=own)


def test_folders_and_values_that_name_no_file(tmp_path):
    (tmp_path / "file").write_text("notes")
    with pytest.raises(UserError, match="is a folder: name a file"):
        output_file("json", str(tmp_path), inputs={}, own=own)
    with pytest.raises(UserError, match="is a file, not a folder"):
        output_file("json", str(tmp_path / "file" / "new"), inputs={}, own=own)
    for value in ("", " ", True, ["a"], {"a": 1}, 1.5):
        with pytest.raises(UserError, match="names no file"):
            output_file("json", value, inputs={}, own=own)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_place_where_nothing_may_be_written(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UserError, match="you may not write in"):
        output_file("json", str(tmp_path / "locked" / "new"), inputs={}, own=own)
    with pytest.raises(UserError, match="you may not write in"):
        check_folder(str(tmp_path / "locked" / "run"))


def test_a_page_of_ours_is_known(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report_page([], [], [], "eval_loss", b""))
    check_own("path", path, own=lambda each: begins_with(each, HEAD))
    path.write_text("<html>mine</html>")
    with pytest.raises(UserError, match=r"path: .*report\.html is there and was not written by this command"):
        check_own("path", path, own=lambda each: begins_with(each, HEAD))


def test_an_earlier_plan_is_known(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(dict.fromkeys(plan.FIELDS)))
    assert is_json(path, plan.FIELDS)
    path.write_text(json.dumps({**dict.fromkeys(plan.FIELDS), "more": 1}))
    assert not is_json(path, plan.FIELDS)


# ---- output folders


@pytest.mark.parametrize(
    "names", [[], ["train.log", "slurm-3.out"], [".lock", ".config.yaml.12"], ["launch.yaml", "failed.txt"]]
)
def test_a_folder_without_anything_of_somebody_elses_is_taken(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("")
    check_folder(str(tmp_path))
    check_folder(str(tmp_path / "new" / "run"))


def test_a_folder_of_ours_is_taken_with_all_it_holds(tmp_path):
    (tmp_path / "config.yaml").write_text("output: a\nseed: 1\nresume: auto\n")
    (tmp_path / "notes.txt").write_text("mine")
    check_folder(str(tmp_path))
    (tmp_path / "rounds" / "round-1").mkdir(parents=True)
    check_folder(str(tmp_path / "rounds"))


@pytest.mark.parametrize("name", ["rows.jsonl", "model", "config.yaml", "notes.txt"])
def test_a_folder_of_somebody_elses_is_refused(tmp_path, name):
    (tmp_path / name).write_text("architectures: [a]\n")
    with pytest.raises(UserError, match=rf"holds no run of this command, but {name}: name a new folder"):
        check_folder(str(tmp_path))


def test_many_files_are_not_all_named(tmp_path):
    for i in range(9):
        (tmp_path / f"{i}.jsonl").touch()
    with pytest.raises(UserError, match=r"but 0\.jsonl, 1\.jsonl, 2\.jsonl and 6 more: name"):
        check_folder(str(tmp_path))


def test_no_folder_and_one_below_a_file(tmp_path):
    (tmp_path / "file").write_text("notes")
    with pytest.raises(UserError, match="output= names no folder"):
        check_folder("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        check_folder(str(tmp_path / "file" / "run"))
