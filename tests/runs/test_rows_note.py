"""A run goes on over its own rows: what its folder notes of them, and what is refused."""

from __future__ import annotations

import json

import pytest

from align.core.errors import UserError
from align.runs.continuation import ROWS, RowsNote, check_rows, run_of
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
