"""A run goes on over its own rows: what its folder notes of them, and what is refused."""

from __future__ import annotations

import json

import pytest

from align.core.errors import UserError
from align.runs.continuation import ROWS, RowsNote, check_rows, run_of
from align.runs.exclusive import exclusive
from tests.forked import run
from tests.rows import make_rows
from tests.tiny import save_tiny


def test_a_note_reads_back_and_a_damaged_one_is_refused(tmp_path):
    assert RowsNote.read(tmp_path) is None  # a run of an earlier version
    RowsNote("ab12", "2026-11-26").write(tmp_path)
    assert RowsNote.read(tmp_path) == RowsNote("ab12", "2026-11-26")
    (tmp_path / ROWS).write_text("{")
    with pytest.raises(
        UserError, match=r"rows\.json cannot be read: restore it, or begin anew with resume=never"
    ):
        RowsNote.read(tmp_path)


def test_only_the_content_decides(tmp_path):
    """The date stands in the prompts that the digest is of, so that it need not be compared."""
    check_rows(tmp_path, RowsNote("a", "2026-11-26"), RowsNote("a", "2026-11-26"))
    check_rows(tmp_path, None, RowsNote("a"))
    with pytest.raises(UserError, match="was trained on other rows than data names now"):
        check_rows(tmp_path, RowsNote("a"), RowsNote("b"))


def test_a_named_checkpoint_goes_on_with_its_own_run(tmp_path):
    assert run_of(tmp_path / "mine", "auto") == tmp_path / "mine"
    assert run_of(tmp_path / "mine", str(tmp_path / "theirs" / "checkpoint-3")) == tmp_path / "theirs"


def test_rows_that_were_replaced_under_the_same_path_are_refused(tmp_path):
    """The same rows elsewhere or written again go on; fewer of them, under the same name, end in a sentence."""
    save_tiny(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", 12)
    words = ["align", "train", f"model.path={tmp_path / 'model'}", f"data.path={tmp_path / 'rows.jsonl'}"]
    words += [f"output={tmp_path / 'run'}", "trainer.save_steps=1", "trainer.gradient_accumulation_steps=4"]
    assert run(words) == [0]
    noted = json.loads((tmp_path / "run" / ROWS).read_text())
    assert noted["date"] is None and len(noted["digest"]) == 16
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text + "\n")  # another file, the same rows
    assert run(words) == [0]
    (tmp_path / "rows.jsonl").write_text("".join(text.splitlines(keepends=True)[:9]))
    assert run(words) == [2]
    assert "was trained on other rows than data names now" in (tmp_path / "run.log").read_text()


def test_a_run_begun_anew_is_not_mixed_with_the_earlier_one(tmp_path):
    """Its checkpoints are of other rows: `auto` goes on from the new run's, and the old ones can still be exported."""
    save_tiny(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", 12)
    words = ["align", "train", f"model.path={tmp_path / 'model'}", f"data.path={tmp_path / 'rows.jsonl'}"]
    words += ["trainer.save_steps=1", "trainer.save_total_limit=9", "trainer.gradient_accumulation_steps=4"]
    output = f"output={tmp_path / 'run'}"
    assert run([*words, output]) == [0]
    old = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text("".join(text.splitlines(keepends=True)[:9]))
    assert run([*words, output, "resume=never"]) == [0]
    kept = tmp_path / "run" / "earlier-1"
    said = (tmp_path / "run.log").read_text().replace("\n", " ")
    assert f"What an earlier run left in {tmp_path / 'run'} (checkpoint-1, " in said
    assert f"model, results.json, training.png) is kept in {kept}." in said
    assert (kept / "results.json").is_file() and (kept / "model").is_dir()
    assert {path.name for path in kept.glob("checkpoint-*")} == old
    new = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert new and new < old  # of fewer rows there are fewer steps
    assert run([*words, output]) == [0]
    export = [
        "align",
        "export",
        f"path={kept / sorted(old)[-1]}",
        f"output={tmp_path / 'old'}",
    ]
    assert run(export) == [0]

    # A run that goes on from the checkpoint of another folder notes its rows in its own.
    resumed = [*words, f"resume={tmp_path / 'run' / 'checkpoint-1'}", f"output={tmp_path / 'other'}"]
    assert run(resumed) == [0]
    assert (tmp_path / "other" / ROWS).read_text() == (tmp_path / "run" / ROWS).read_text()


def test_two_runs_in_one_folder_are_refused(tmp_path):
    """The second would remove what the first has saved."""
    save_tiny(tmp_path / "model")
    make_rows(tmp_path / "rows.jsonl", 12)
    words = ["align", "train", f"model.path={tmp_path / 'model'}", f"data.path={tmp_path / 'rows.jsonl'}"]
    words += [f"output={tmp_path / 'run'}"]
    with exclusive(tmp_path / "run"):
        assert run(words) == [2]
    assert "run is in use by another run: wait until it ends" in (tmp_path / "run.log").read_text()
    assert not (tmp_path / "run" / ROWS).exists()
