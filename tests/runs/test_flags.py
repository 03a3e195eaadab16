"""Flags of other programs are answered with the key that sets the same here; Hydra's own are its."""

from __future__ import annotations

import pytest
from hydra._internal.utils import get_args_parser

from align.core.errors import UserError
from align.runs.composition import known_keys
from align.runs.flags import _ELSEWHERE, FLAGS, check_flags


def test_every_flag_of_hydra_is_let_through():
    assert {flag for action in get_args_parser()._actions for flag in action.option_strings} == FLAGS


def test_the_keys_that_stand_for_other_names_are_keys():
    assert set(_ELSEWHERE.values()) <= set(known_keys("train", []))


@pytest.mark.parametrize(
    "words",
    [
        ["--cfg", "job", "seed=1"],
        ["-m", "seed=1,2"],
        ["--config-dir=folder", "method=mine"],
        ["--config-dir", "-folder"],
        ["trainer.max_steps=-1"],
        ["~trainer.seed"],
    ],
    ids=" ".join,
)
def test_words_that_are_no_such_flag(words):
    check_flags(words, "train")


@pytest.mark.parametrize(
    ("words", "written"),
    [
        (["--max-steps", "1"], "write trainer.max_steps=1;"),
        (["--max_steps=1"], "write trainer.max_steps=1;"),
        (["--max-steps"], "write trainer.max_steps=VALUE;"),
        (["--max-steps", "--lr", "3"], "write trainer.max_steps=VALUE;"),
        (["--learning_rate", "3"], "write trainer.learning_rate=3;"),
        (["--trainer.learning_rate", "3"], "write trainer.learning_rate=3;"),
        (["--beta", "3"], "write method.loss.beta=3;"),
        (["--dataset", "rows.jsonl"], "write data.path=rows.jsonl;"),
        (["--bogus"], "keys are set as KEY=VALUE;"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_key_to_write_is_named(words, written):
    with pytest.raises(UserError) as caught:
        check_flags(["data.path=rows.jsonl", *words], "train")
    assert written in str(caught.value)
