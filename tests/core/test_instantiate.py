"""What a `_target_` may be: a registered class of `align`, a class of an allowed package, nothing that only runs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

import hydra_conf
from align.core.errors import UserError
from align.core.instantiate import build, instantiate
from align.core.targets import KINDS

CONF = Path(hydra_conf.__file__).parent
PROTOCOLS = {
    "adapter": "align.adapters.adapter.Adapter",
    "suite": "align.evaluation.suite.Suite",
    "pipeline": "align.synthesis.pipeline.Pipeline",
    "positions": "align.data.positions.Placement",
    "generator": "align.generation.generators.GeneratorSettings",
    "select": "align.synthesis.selection.select.Selector",
    "scorer": "align.synthesis.logo.relevance.RelevanceScorer",
    "quality": "align.synthesis.longwriter.quality.QualityScorer",
    "attention": "align.patterns.layers.LayerPatterns",
    "others": "align.patterns.pattern.Pattern",
    "table": "align.rope_tables.table.Table",
    "query_scale": "align.query_scale.scale.QueryScale",
}
OWN = [(kind, name) for kind, known in KINDS.items() for name in known.own]


def command(group: str, node: Any, **more: Any) -> Any:
    return OmegaConf.create({group: node, "allow_targets": [], **more})


@dataclass
class Mine:
    """A suite, a pipeline, a generator and a selection, as far as their methods go."""

    value: Any = 1
    first: Any = None

    def check(self): ...
    def run(self, *unused): ...
    def read(self): ...
    def open(self, *unused): ...
    def scores(self, *unused): ...


class Plain:
    """The same without fields."""

    check = run = Mine.run


class Counted:
    """Counts how often it was made."""

    made = 0

    def __init__(self) -> None:
        Counted.made += 1


def touch(path: str) -> str:
    """What must not run: makes a file."""
    Path(path).touch()
    return path


ATTACKS = [
    {"_target_": "align.runs.children.run_child", "command": ["touch", "MARK"]},
    {"_target_": "align.runs.children.run_child", "_args_": [["touch", "MARK"]]},
    {"_target_": "align.core.files.write_atomically", "path": "MARK", "text": "x"},
    {"_target_": "align.core.files.write_json", "path": "MARK", "value": {}},
    {"_target_": "align.runs.children.subprocess.run", "args": ["touch", "MARK"]},
    {"_target_": "align.core.files.Path.touch", "_args_": ["MARK"]},
    {"_target_": "align.children.run_child", "command": ["touch", "MARK"]},  # a name that has moved
    {"_target_": "pathlib.Path.touch", "_args_": ["MARK"]},
    {"_target_": "tests.core.test_instantiate.touch", "path": "MARK"},
    # resolved a second time, it would become a node with a target of its own
    "${oc.create:'{_target_: tests.core.test_instantiate.touch, path: MARK}'}",
]
PLACES = {
    "suite": lambda attack: attack,
    "an argument": lambda attack: {
        "_target_": "align.evaluation.questions.Questions",
        "path": attack,
    },
    "in a list": lambda attack: {
        "_target_": "align.evaluation.retrieval.Retrieval",
        "lengths": [1, {"deep": [attack]}],
    },
    "quality": lambda attack: {
        "_target_": "align.evaluation.longwrite.LongWrite",
        "quality": attack,
    },
    "deep": lambda attack: {
        "_target_": "align.evaluation.longwrite.LongWrite",
        "quality": {
            "_target_": "align.synthesis.longwriter.quality.Judge",
            "generator": attack,
        },
    },
}


def marked(value: Any, path: Path) -> Any:
    """`value` with the file to make in place of MARK."""
    if isinstance(value, dict):
        return {key: marked(entry, path) for key, entry in value.items()}
    if isinstance(value, list):
        return [marked(entry, path) for entry in value]
    return value.replace("MARK", str(path)) if isinstance(value, str) else value


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("attack", ATTACKS, ids=range(len(ATTACKS)))
@pytest.mark.parametrize("allow", [[], ["align"], ["tests"]])
def test_a_function_is_refused_wherever_it_stands_and_does_not_run(tmp_path, place, attack, allow):
    """Also with `allow_targets=[align]`: of this project that adds nothing. A package allowed by name adds classes."""
    mark = tmp_path / "mark"
    node = PLACES[place](marked(attack, mark))
    if isinstance(attack, str):  # what is text after one resolution stays text
        node = OmegaConf.create(marked({"value": "\\" + attack}, mark)).value
        node = PLACES[place](node)
    with pytest.raises(UserError):
        build(command("suite", node, allow_targets=allow), "suite")
    assert not mark.exists()


def test_nothing_is_called_before_all_is_checked(tmp_path):
    """The class stands before the function that is refused."""
    node = {
        "_target_": "tests.core.test_instantiate.Mine",
        "first": {"_target_": "tests.core.test_instantiate.Counted"},
        "value": {"_target_": "tests.core.test_instantiate.touch", "path": str(tmp_path / "mark")},
    }
    with pytest.raises(UserError, match=r"configuration\.value\._target_=\S+touch is refused: a function"):
        instantiate(node, allow=["tests"])
    assert Counted.made == 0 and not (tmp_path / "mark").exists()


@pytest.mark.parametrize("group", ["suite", "pipeline", "generator", "select"])
def test_each_group_takes_its_own_classes_and_those_of_ones_own_with_its_methods(group):
    other = next(name for kind, name in OWN if kind not in (group, "scorer"))
    with pytest.raises(UserError, match=rf"{group}\._target_={other} is refused: take "):
        build(command(group, {"_target_": other}), group)
    own = command(
        group, {"_target_": "tests.core.test_instantiate.Mine", "value": 3}, allow_targets=["tests"]
    )
    assert build(own, group) == Mine(3)
    with pytest.raises(UserError, match="allow_targets"):
        build(command(group, {"_target_": "tests.core.test_instantiate.Mine"}), group)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("Counted", r"a suite has check\(\) and run\(\), which this class has not"),
        ("Plain", "a suite is a dataclass"),
        ("touch", "a suite is a class, not a function"),
    ],
)
def test_a_class_of_ones_own_has_the_form_of_its_group(name, sentence):
    config = command("suite", {"_target_": f"tests.core.test_instantiate.{name}"}, allow_targets=["tests"])
    with pytest.raises(UserError, match=sentence):
        build(config, "suite")
    assert Counted.made == 0


@pytest.mark.parametrize("value", [3, "text", None, True, [], [{"_target_": "os.getcwd"}], {}])
def test_what_is_no_mapping_names_nothing_to_call(value):
    with pytest.raises(UserError, match="suite needs a `_target_`"):
        build(command("suite", value), "suite")


def test_suites_by_name_are_suites():
    node = {"mine": {"_target_": "align.generation.local.LocalSettings"}}
    from align.evaluation.suite import build_suites

    with pytest.raises(UserError, match=r"suites\.mine\._target_=\S+ is refused: take align\.evaluation"):
        build_suites(command("suites", node))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"_partial_": True}, "remove `_partial_`"),
        (
            {"_recursive_": False},
            "_recursive_ is unknown; beside arguments stand _args_, _partial_, _target_",
        ),
        ({"_args_": "abc"}, "_args_=abc has to be a list"),
        ({"_args_": [1, 2, 3, 4, 5, 6, 7, 8, 9]}, "positional arguments"),
    ],
)
def test_what_stands_beside_a_target(more, sentence):
    node = {"_target_": "align.generation.local.LocalSettings", **more}
    with pytest.raises(UserError, match=sentence):
        build(command("generator", node), "generator")


def test_values_reach_a_class_as_they_were_resolved():
    """`\\${…}` stands for the text `${…}`: a prompt may hold it."""
    config = OmegaConf.create("{value: '\\${kept}', _target_: tests.core.test_instantiate.Mine}")
    assert instantiate(config, allow=["tests"]).value == "${kept}"


@pytest.mark.parametrize(("kind", "name"), OWN)
def test_registered_classes_have_the_methods_of_their_kind(kind, name):
    """The names are those of where the classes are defined, so that another road to one leads to the same name."""
    module, _, attribute = name.rpartition(".")
    found = getattr(importlib.import_module(module), attribute)
    assert f"{found.__module__}.{found.__qualname__}" == name
    if inspect.isclass(found):
        assert all(callable(getattr(found, method)) for method in KINDS[kind].methods)


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_methods_are_those_of_the_protocol(kind):
    protocol = pkgutil.resolve_name(PROTOCOLS[kind])
    methods = {name for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"}
    assert set(KINDS[kind].methods) == methods


def test_every_target_of_the_configuration_is_registered():
    """Each YAML's, and those nested in it, at the kind that its key names."""
    seen = 0
    for path in sorted(CONF.rglob("*.yaml")):
        config = OmegaConf.to_container(OmegaConf.load(path))
        for key, target in targets(config, path.parent.name):
            if target.startswith("losses."):
                continue
            found = pkgutil.resolve_name(target)
            assert f"{found.__module__}.{found.__qualname__}" in KINDS[key].own, (path, key, target)
            seen += 1
    assert seen > 15


def targets(node: Any, key: str) -> list[tuple[str, str]]:
    if not isinstance(node, dict):
        return []
    here = [(key, node["_target_"])] if "_target_" in node else []
    return here + [pair for name, value in node.items() for pair in targets(value, str(name))]


def test_a_command_line_that_names_a_function_runs_nothing(tmp_path):
    """As it was reported: the command ran before the type was looked at."""
    mark = tmp_path / "mark"
    suite = f"+suite={{_target_: align.runs.children.run_child, command: [touch, {mark}]}}"
    words = ["-m", "align.evaluate", "~suite", suite, f"output={tmp_path / 'out'}"]
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 2 and "Traceback" not in ended.stderr
    assert "suite._target_=align.runs.children.run_child is refused" in ended.stderr
    assert not mark.exists() and not (tmp_path / "out").exists()
