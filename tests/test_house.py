"""The house rules that a machine can check. Documentation has tests of its own: test_docs.py and test_glossary.py."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import align
import losses
from align.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PACKAGES = ("align", "losses", "hydra_conf")
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    latest = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert latest is not None
    assert project["version"] == align.__version__ == latest[1]


# ---- code


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) < MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 < MAX_FUNCTION_LINES, node.name


# Package → the packages that its modules may import: arrows go one way, and this order has no circle.
MAY_IMPORT = {
    "core": set(),
    "scores": set(),
    "distributed": {"core"},
    "patterns": {"core"},
    "rope_tables": {"core"},
    "query_scale": {"core"},
    "models": {"core", "patterns", "rope_tables", "query_scale"},
    "adapters": {"core", "patterns", "models"},
    "data": {"core", "models"},
    "longseq": {"core", "distributed", "patterns", "query_scale", "models", "data"},
    "verification": {"core", "distributed", "patterns", "models", "adapters", "data", "longseq"},
    "reference": {"core", "distributed", "models", "data", "longseq"},
    "documents": {"core", "data"},
    "runs": {"core", "distributed", "models"},
    "generation": {"core", "patterns", "models", "adapters", "data", "longseq"},
    "training": {
        "core",
        "distributed",
        "patterns",
        "models",
        "adapters",
        "data",
        "longseq",
        "reference",
        "runs",
        "scores",
    },
    "merging": {"core", "models", "adapters", "data", "runs", "training"},
    "synthesis": {
        "core",
        "patterns",
        "models",
        "data",
        "longseq",
        "documents",
        "generation",
        "scores",
        "runs",
    },
    "evaluation": {
        "core",
        "distributed",
        "patterns",
        "models",
        "data",
        "longseq",
        "documents",
        "generation",
        "scores",
        "runs",
    }
    | {"training", "synthesis"},
    "planning": {
        "core",
        "distributed",
        "patterns",
        "models",
        "adapters",
        "data",
        "longseq",
        "reference",
        "training",
    },
}


def imported(path: Path) -> set[str]:
    """Dotted names of ours that a file imports anywhere in it, also for types alone and inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.partition(".")[0] in ("align", "losses", "benchmarks", "tests")}


def test_packages_are_ordered():
    """Each imports only what stands before it, so that there is no circle; every package has its line."""
    before: set[str] = set()
    for package, others in MAY_IMPORT.items():
        assert others <= before, package
        before.add(package)
    assert before == {path.parent.name for path in (ROOT / "align").glob("*/__init__.py")}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_arrows_between_packages_run_one_way(package):
    allowed = {f"align.{name}" for name in MAY_IMPORT[package] | {package}} | {"losses"}
    for path in (ROOT / "align" / package).rglob("*.py"):
        for name in imported(path) - {"align", "align.__version__"}:
            assert ".".join(name.split(".")[:2]) in allowed or name.startswith("losses."), f"{path}: {name}"


def test_every_module_can_be_imported():
    """mypy passes over an import of ours that leads nowhere, as over those of libraries without types."""
    for package in (align, losses):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(found.name)


def test_losses_know_nothing_of_the_rest():
    assert all(
        name.startswith("losses") for path in (ROOT / "losses").glob("*.py") for name in imported(path)
    )


def test_the_forward_reads_examples_and_nothing_else_of_the_data():
    for path in (ROOT / "align" / "longseq").glob("*.py"):
        of_data = {name for name in imported(path) if name.startswith("align.data.")}
        assert all(name.startswith("align.data.examples.") for name in of_data), path


def test_the_root_is_the_list_of_commands():
    files = {path.stem for path in (ROOT / "align").glob("*.py")}
    assert files == {"__init__", "__main__", "cli", *COMMANDS}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_shape_of_the_others(name):
    """`main` for the command line, a function of the command's name that returns something typed, a YAML."""
    tree = ast.parse((ROOT / "align" / f"{name}.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert functions["main"].decorator_list
    returned = functions[name].returns
    assert returned is not None
    assert ast.unparse(returned) not in ("None", "Any", "int")
    assert (ROOT / "hydra_conf" / f"{name}.yaml").is_file()


def committed() -> list[Path]:
    """Text files under version control."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / line for line in listed.stdout.splitlines()]
    return [path for path in paths if path.is_file() and path.suffix not in (".png", ".svg")]


def test_no_path_of_a_machine():
    """Nothing points into somebody's home or working folder; tests may make such paths up, but not this one."""
    pattern = re.compile(r"(?<![\w.~}$])/(?:home|root|Users|work|mnt|scratch)/\w+")
    for path in committed():
        text = path.read_text()
        assert str(ROOT) not in text, path
        found = None if "tests" in path.relative_to(ROOT).parts else pattern.search(text)
        assert found is None, f"{path}: {found}"


def switched_on(node: ast.AST) -> bool:
    """Whether a piece of code gives `trust_remote_code` the value True: as default, field or argument."""
    if isinstance(node, ast.arguments):
        given = [*node.posonlyargs, *node.args][-len(node.defaults) or None :]
        pairs = [
            *zip(given, node.defaults, strict=False),
            *zip(node.kwonlyargs, node.kw_defaults, strict=True),
        ]
        return any(a.arg == "trust_remote_code" and getattr(d, "value", None) is True for a, d in pairs)
    name = getattr(node, "arg", None) or getattr(getattr(node, "target", None), "id", None)
    return name == "trust_remote_code" and getattr(getattr(node, "value", None), "value", None) is True


def test_code_of_a_model_runs_only_when_asked():
    """`trust_remote_code` is on nowhere by itself."""
    for path in SOURCES:
        assert not any(switched_on(node) for node in ast.walk(ast.parse(path.read_text()))), path
    for path in (ROOT / "hydra_conf").rglob("*.yaml"):
        assert not re.search(r"trust_remote_code:\s*true", path.read_text(), flags=re.IGNORECASE), path


@pytest.mark.parametrize(
    ("code", "on"),
    [
        ("f(trust_remote_code=True)", True),
        ("f(trust_remote_code=settings.trust_remote_code)", False),
        ("def f(a, trust_remote_code=True): ...", True),
        ("def f(a, b=True, *, trust_remote_code: bool = True): ...", True),
        ("def f(a, b=True, *, trust_remote_code: bool = False): ...", False),
        ("class S:\n    trust_remote_code: bool = True", True),
    ],
)
def test_the_search_for_it_finds_it(code, on):
    assert any(switched_on(node) for node in ast.walk(ast.parse(code))) is on


def test_every_configuration_key_says_what_it_is():
    """A value in a group's YAML has a comment on its line, or in the lines above or below that continue one."""
    for path in sorted((ROOT / "hydra_conf").glob("*/default.yaml")):
        for line in path.read_text().splitlines():
            key = re.match(r"(\w+): \S+\s*$", line)
            assert key is None or path.parent.name == "trainer", f"{path.parent.name}: {line}"
