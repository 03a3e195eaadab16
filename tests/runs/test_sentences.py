"""Words that Hydra's grammar or a group cannot take: the sentence names the word and gives one that works."""

from __future__ import annotations

import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from align.core.errors import UserError
from align.runs.api import compose
from align.runs.quoting import quoted

VALUES = (
    *(
        "a=b.jsonl",
        "中文.jsonl",
        "a#b",
        "a (1).jsonl",
        "it's",
        "'",
        '"',
        "a$b`c`!",
        "[",
        "{context} {question}",
        "a%b=c",
    ),
    *("{", "é b", "[1,", "a\\b=c", "x=${HOME}", "]", "😀"),
)


@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_cannot_be_read_is_shown_as_it_can_be(value):
    """What the sentence tells to type, a shell passes on, and Hydra reads as the value itself."""
    with pytest.raises(UserError) as caught:
        compose("train", ["method=dpo", f"data.path={value}"])
    said = str(caught.value)
    assert said.startswith(f"data.path={value} cannot be read") and "\n" not in said
    (word,) = shlex.split(said.partition("around the word: ")[2].removesuffix("."))
    assert compose("train", [word]).data.path == value


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("method=3", r"method=3 is not known: the group method takes .*dpo, .*simpo"),
        ("method={a: 1}", r"method=\{a: 1\} is not known: the group method takes"),
        ("method=[1]", r"method=\[1\] is not known"),
        ("positions=nan", r"positions=nan is not known: the group positions takes e2, logo, "),
        ("data.path", r"data\.path is no setting: write KEY=VALUE"),
        ("=3", r"=3 is no setting"),
        ("a b=3", r"a b=3 is no setting"),
        ("../x=3", r"\.\./x=3 is no setting"),
        (
            "seed=1,2",
            r"seed=1,2 has several values: write seed=\[1,2\] for a list, \"seed='1,2'\" for one text",
        ),
        (f"data.path={'[' * 5000}", r"data\.path=\[+ … \[+ cannot be read"),
        ("data.path=a\nb=", r"data\.path=a b= cannot be read"),
    ],
)
def test_words_of_another_form(word, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        compose("train", [word])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@given(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\\'\"${}[]=, \t"), max_size=12)
)
def test_a_quoted_text_is_read_as_it_is(text):
    """Any text of a line, by Hydra's own grammar and OmegaConf's interpolations."""
    parsed = OverridesParser.create().parse_override(f"key={quoted(text)}")
    assert OmegaConf.create({"key": parsed.value()}).key == text


def test_a_folder_of_any_name_holds_configuration(tmp_path):
    folder = tmp_path / "it's a\\b \\'conf"
    (folder / "method").mkdir(parents=True)
    (folder / "method" / "mine.yaml").write_text("name: mine\n")
    assert compose("train", ["method=mine"], config_dir=folder).method.name == "mine"
