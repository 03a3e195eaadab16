"""Values reach Hydra and the processes of a job as they are, whatever characters they have."""

from __future__ import annotations

import itertools

from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from align.runs import jobs
from align.runs.quoting import literal, override


def composed(key, value):
    """The value that a command has in its configuration after this override."""
    parsed = OverridesParser.create().parse_override(override(key, value)).value()
    return OmegaConf.to_container(OmegaConf.create({key: parsed}), resolve=True)[key]


def test_every_short_text_of_the_characters_that_matter():
    """All 5,461 texts of up to six characters, four of which mean something to Hydra or OmegaConf."""
    for length in range(7):
        for characters in itertools.product("a\\'$", repeat=length):
            text = "".join(characters).replace("$", "${")
            assert composed("path", text) == text


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\n\r"), max_size=30))
def test_any_text(text):
    assert composed("path", text) == text


def test_a_windows_path_keeps_its_backslashes():
    assert override("path", r"a\b") == r"path='a\b'"


def test_a_child_reads_what_its_job_had(tmp_path):
    """A `${context}` that was escaped stays text; an interpolation has been resolved."""
    values = {
        "prompt": r"Read \${context}.",
        "list": [r"\${a}"],
        "seed": 3,
        "twice": "${seed}",
        "output": "x",
    }
    config = OmegaConf.create(values)
    jobs._write_child_config(config, tmp_path)
    child = OmegaConf.to_container(OmegaConf.load(tmp_path / "launch.yaml"), resolve=True)
    assert (child["prompt"], child["list"], child["twice"]) == ("Read ${context}.", ["${a}"], 3)
    assert literal({"a": [1, None]}) == {"a": [1, None]}
