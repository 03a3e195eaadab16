"""The house rules that a machine can check. Documentation has tests of its own: test_docs.py and test_glossary.py."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import align

ROOT = Path(__file__).parent.parent
PACKAGES = ("align", "losses", "hydra_conf")
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
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
