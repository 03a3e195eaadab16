"""Old names of one release: each still gives what it named, with a sentence that says what to write."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import warnings

import pytest

from align.core.errors import MovedWarning
from align.core.moved import MOVED, RENAMED, current_names


@pytest.mark.parametrize("old", MOVED)
def test_an_old_module_has_the_names_of_the_new_ones(old):
    sys.modules.pop(old, None)
    with pytest.warns(MovedWarning, match=f"{old} has moved: write {MOVED[old][0]} instead"):
        module = importlib.import_module(old)
    for place in MOVED[old]:
        for name, value in vars(importlib.import_module(place)).items():
            if getattr(value, "__module__", None) == place:
                assert getattr(module, name) is value, name


def test_the_new_module_does_not_notice():
    """Its spec, by which it is pickled and reloaded, is its own."""
    sys.modules.pop("align.trainer", None)
    with pytest.warns(MovedWarning):
        importlib.import_module("align.trainer")
    new = importlib.import_module("align.training.trainer")
    assert new.__spec__ is not None
    assert new.__spec__.name == new.__name__ == "align.training.trainer"


def test_a_target_written_down_before_the_move_is_built():
    """A pipeline's scorer as version 0.1.0 named it; the class is the one that the new name gives."""
    from align.core.instantiate import instantiate

    new = instantiate({"_target_": "align.synthesis.logo.relevance.Bm25"}, allow=("align",))
    sys.modules.pop("align.synthesis.scorers", None)
    with pytest.warns(MovedWarning, match="align.synthesis.logo.relevance"):
        old = instantiate({"_target_": "align.synthesis.scorers.Bm25"}, allow=("align",))
    assert type(old) is type(new)


@pytest.mark.parametrize(
    "target",
    [
        "align.synthesis.logo.LogoPipeline",
        "align.synthesis.longpo.LongPOPipeline",
        "align.synthesis.longwriter.LongWriterPipeline",
        "align.evaluation.retrieval.Retrieval",
    ],
)
def test_names_that_stayed_warn_of_nothing(target):
    module, _, name = target.rpartition(".")
    code = f"import warnings; warnings.simplefilter('error'); from {module} import {name}; print({name})"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_name_gives_what_the_new_one_does(old):
    """`pkgutil.resolve_name` is what a `_target_` is found by."""
    module = old.rpartition(".")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the module
        importlib.import_module(module)
    with pytest.warns(MovedWarning, match=f"{old} is {RENAMED[old]} now"):
        found = pkgutil.resolve_name(old)
    assert found is pkgutil.resolve_name(RENAMED[old])
    assert current_names(old) == [RENAMED[old]]


def test_other_names_are_not_found():
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("align.nothing")
    for module in ("align.longseq", "align.reference", "align.data.dataset"):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            importlib.import_module(module).nothing  # noqa: B018 (the lookup is the test)
