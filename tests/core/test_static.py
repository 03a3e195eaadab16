"""What a function takes, read from its source."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import losses
from align.core.static import read_parameters

LOSSES = [name for name in losses.__all__ if name.endswith("_loss")]


@pytest.mark.parametrize("name", LOSSES)
def test_equals_what_an_import_tells(name):
    """Of every loss, whose name is re-exported: the same keywords, and the same of them numbers."""
    told = inspect.signature(getattr(losses, name)).parameters
    found = read_parameters(f"losses.{name}")
    assert found is not None
    assert found.names == tuple(told)
    assert found.numbers == {key for key, value in told.items() if value.annotation in ("float", "int")}


def test_nothing_is_imported():
    code = (
        "import sys; from align.core.static import read_parameters as read; "
        "print(read('losses.dpo_loss').names, 'losses' in sys.modules, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'beta'" in said
    assert said.split(")")[1].split() == ["False", "False"]


@pytest.mark.parametrize(
    "target",
    ["losses.nothing", "no_package.loss", "", "loss", "losses.PairLogps", "losses.dpo.nothing", "sys.exit"],
)
def test_what_the_source_does_not_say_is_none(target):
    """A class, a name that is not there, a module without source: the import tells later."""
    assert read_parameters(target) is None


def test_keywords_without_end_and_a_circle_of_imports(tmp_path, monkeypatch):
    (tmp_path / "loose").mkdir()
    (tmp_path / "loose" / "__init__.py").write_text(
        "from loose.a import open_loss\nfrom loose.a import lost\n"
    )
    (tmp_path / "loose" / "a.py").write_text(
        "from loose import lost\n\ndef open_loss(policy, *, beta: float, **more): ...\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = read_parameters("loose.open_loss")
    assert found is not None
    assert found.any_keyword
    assert found.numbers == {"beta"}
    assert read_parameters("loose.lost") is None
