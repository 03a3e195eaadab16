"""A value that does not fit its key is answered with what the key takes and an example."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from omegaconf import OmegaConf

from align.core.config import typed
from align.core.errors import UserError


@dataclass(frozen=True)
class Entry:
    path: str
    ratio: float
    note: str | None = None


@dataclass(frozen=True)
class Inner:
    names: list[str] = field(default_factory=list)
    rank: int = 8


@dataclass(frozen=True)
class Schema:
    size: int | None = None
    share: float = 0.5
    on: bool = False
    name: str = "auto"
    mapping: dict[str, str | None] | None = None
    free: dict[str, Any] | None = None
    entries: list[Entry] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"size": "8k"}, "g.size=8k has the wrong type: it takes a whole number or null, as in g.size=8192."),
        ({"size": 1.5}, "g.size=1.5 has the wrong type: it takes a whole number or null, as in g.size=1."),
        ({"share": "much"}, "g.share=much has the wrong type: it takes a number, as in g.share=0.5."),
        ({"share": None}, "g.share=null has the wrong type: it takes a number, as in g.share=0.5."),
        ({"on": "maybe"}, "g.on=maybe has the wrong type: it takes true or false, as in g.on=false."),
        ({"name": ["a", True]}, "g.name=[a, true] has the wrong type: it takes a text, as in g.name=auto."),
        ({"mapping": 3}, "it takes a mapping of names to texts or null, as in 'g.mapping={NAME: VALUE}'."),
        ({"free": ["a"]}, "g.free=[a] has the wrong type: it takes a mapping of names to values or null"),
        ({"entries": "a"}, "as in 'g.entries=[{path: a, ratio: 1}]'."),
        (
            {"entries": ["a b"]},
            "g.entries[0]=a b has the wrong type: it takes a mapping with the keys path, ratio",
        ),
        (
            {"entries": [{"path": "a", "ratio": "x"}]},
            "g.entries[0].ratio=x has the wrong type: it takes a number",
        ),
        ({"numbers": ["1k"]}, "it takes a list of whole numbers, as in 'g.numbers=[1024]'."),
        ({"inner": 3}, "g.inner=3 has the wrong type: it takes a mapping with the keys names, rank"),
        (
            {"inner": {"rank": "x"}},
            "g.inner.rank=x has the wrong type: it takes a whole number, as in g.inner.rank=8.",
        ),
        ({"inner": {"names": "all"}}, "it takes a list of texts, as in 'g.inner.names=[all]'."),
        ({"name": "${nothing}"}, "g.name refers to something that cannot be found"),
    ],
    ids=str,
)
def test_the_key_what_it_takes_and_an_example(values, said):
    with pytest.raises(UserError) as caught:
        typed(Schema, OmegaConf.create({"g": values}), "g")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [{"size": "8"}, {"share": 1}, {"on": "yes"}, {"name": 3}, {"entries": [{"path": "a", "ratio": "2"}]}],
    ids=str,
)
def test_what_can_be_read_is_taken(values):
    typed(Schema, OmegaConf.create({"g": values}), "g")
