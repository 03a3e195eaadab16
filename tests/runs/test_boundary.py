"""The one boundary of every command: a sentence where a user can put it right, else a traceback and whom to tell."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from align.core.errors import UserError
from align.runs import command, exit_codes
from align.runs.console import tolerate_any_terminal
from align.runs.sentences import dotted_group, machine_fault, sentence


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "out/x"),
            "out/x: you may not write there; name",
        ),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "f/x"), "f/x: a part of the path is a file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "aaa"), "aaa: its name is too long"),
        (
            ModuleNotFoundError("No module named 'spacy'", name="spacy.lang"),
            "the package spacy is not installed",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried 3 GiB. More"),
            "memory ran out",
        ),
    ],
)
def test_what_the_machine_refuses_is_one_sentence(error, said):
    found = machine_fault(error)
    assert found is not None and said in found
    assert found.count("\n") == 0


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'align.nothing'", name="align.nothing"),
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        ValueError("a defect"),
        OSError("without a number"),
    ],
)
def test_what_may_be_a_defect_of_ours_is_none(error):
    assert machine_fault(error) is None


@pytest.mark.parametrize("group", ["data/order", "model/rope", "model/query_scale", "generator/memory"])
def test_a_group_that_is_chosen_with_a_dot_is_told_the_slash(group):
    """Whatever ended the command: such a word is never right."""
    key, name = group.replace("/", "."), "grow"
    said = sentence(UserError("of another kind"), command="train", overrides=["seed=1", f"{key}={name}"])
    assert said is not None
    assert said.startswith(f"{key}={name}: {group} is a group, chosen with a slash: {group}=NAME, one of ")
    for word in (f"{key}=null", f"{group}={name}", f"{key}={{a: 1}}", f"{key}.type=yarn", "method=dpo"):
        assert dotted_group([word]) is None


def ended(capsys, error) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        command._end("train", error)
    return end.value.code, capsys.readouterr().err


def test_a_defect_keeps_its_traceback_and_says_whom_to_tell(capsys):
    try:
        raise ZeroDivisionError("ours")
    except ZeroDivisionError as error:
        code, said = ended(capsys, error)
    assert code == exit_codes.FAULT == 1
    assert "Traceback" in said and "ZeroDivisionError: ours" in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("align train: this is a defect of align ") and "please report it" in last


def test_a_pipe_that_was_closed_is_handed_on(capsys):
    with pytest.raises(BrokenPipeError):
        command._end("plan", BrokenPipeError())


def test_a_terminal_without_the_characters_shows_question_marks(monkeypatch):
    """A table's `×` in ASCII ended the run that it described."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    tolerate_any_terminal()
    print("2 × 8…")
    stream.flush()
    assert stream.buffer.getvalue() == b"2 ? 8?\n"
