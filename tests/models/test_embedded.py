"""The embedded model's conversion: one sentence of ours, nothing of the library's, and whole or absent."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from align.models import embedded


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    return tmp_path


def test_it_is_converted_once_and_said(monkeypatch, capfd, cache):
    def convert(source: Path, target: Path) -> None:
        assert source.suffix == ".gguf"
        print("a bar of the library's", file=sys.stderr)
        (target / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "_convert_gguf", convert)
    folder = embedded.embedded_model()
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert capfd.readouterr().err == f"model.path=embedded: converted once, into {folder} (half a minute)\n"
    assert embedded.embedded_model() == folder
    assert capfd.readouterr().err == ""


def test_a_conversion_that_fails_leaves_nothing(monkeypatch, cache):
    def convert(source: Path, target: Path) -> None:
        (target / "half").write_text("")
        raise RuntimeError("out of memory")

    monkeypatch.setattr(embedded, "_convert_gguf", convert)
    with pytest.raises(RuntimeError, match="out of memory"):
        embedded.embedded_model()
    assert not list(cache.iterdir())
