"""Files that are whole or absent, whoever writes them."""

from __future__ import annotations

import os

from align.core.files import writing_atomically


def test_two_processes_of_one_id_write_one_file(tmp_path, monkeypatch):
    """As two containers that share a folder: each has a staging file of its own, and the last one's text stands."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "call.json"
    with writing_atomically(path) as first:
        first.write("the first one's text")
        with writing_atomically(path) as second:
            second.write("the second one's")
        assert path.read_text() == "the second one's"
    assert path.read_text() == "the first one's text"
    assert [file.name for file in tmp_path.iterdir()] == ["call.json"]
