"""README, CONTRIBUTING and CHANGELOG against the repository, and the house rules that a machine can check."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import align
from align.cli import COMMANDS
from align.training.methods import load_method

ROOT = Path(__file__).parent.parent
PACKAGES = ("align", "losses", "hydra_conf")
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
README = (ROOT / "README.md").read_text()
SOURCES = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60


def blocks(document: str, *languages: str) -> list[str]:
    """The fenced blocks of a Markdown text that are marked with one of `languages` (`""`: unmarked)."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", document, flags=re.MULTILINE | re.DOTALL)
    return [text for language, text in fenced if language in languages]


def section(title: str) -> str:
    """README's section under `## title`."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def command_lines() -> list[list[str]]:
    """Every shell command in README and CONTRIBUTING that starts `align`, as words."""
    lines = []
    for path in DOCUMENTS:
        for block in blocks(path.read_text(), "bash", ""):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                module = [i for i, word in enumerate(words) if word.startswith("align.")]
                if "align" in words:
                    lines.append(words[words.index("align") + 1 :])
                elif module:
                    lines.append([words[module[0]].removeprefix("align."), *words[module[0] + 1 :]])
    return lines


# ---- README


def test_the_table_lists_every_method():
    rows = re.findall(r"^\| `(\w+)` \|", section("Methods"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "hydra_conf" / "method").glob("*.yaml"))


def test_the_table_names_each_papers_number():
    """The arXiv numbers of a method's row stand in its YAML or in its loss."""
    for line in section("Methods").splitlines():
        found = re.match(r"\| `(\w+)` \|.*\[(\d{4}\.\d{5})\]\(https://arxiv.org/abs/\2\)", line)
        if found and found[1] != "sft":
            name, number = found.groups()
            assert number in (ROOT / "hydra_conf" / "method" / f"{name}.yaml").read_text(), line


def test_the_tree_is_the_repositorys():
    """Every name of the tree exists; every top-level folder of code, package folder and command is named."""
    (tree,) = blocks(section("The tree"), "")
    parents: dict[int, Path] = {0: ROOT}
    named = set()
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        first, _, text = line.strip().partition(" ")
        here = parents[depth] / first
        assert here.exists(), first
        named.add(here)
        parents[depth + 2] = here
        for other in re.findall(r"[\w./*]+\.(?:py|yaml)\b", text):
            assert any(here.glob(other)) if here.is_dir() else (here.parent / other).exists(), other
    folders = {path for path in (ROOT / "align").iterdir() if list(path.glob("[!_]*.py"))}
    code = {ROOT / name for name in (*PACKAGES, "launchers", "tests")}
    commands = {ROOT / "align" / f"{name}.py" for name in COMMANDS}
    assert folders | code | commands <= named


def test_every_command_is_shown():
    shown = {line[0] for line in command_lines()}
    assert set(COMMANDS) <= shown
    assert shown <= {*COMMANDS, "COMMAND"}


@pytest.mark.parametrize("words", command_lines(), ids=lambda words: " ".join(words)[:60])
def test_the_keys_of_every_command_exist(words, tmp_path):
    """What README and CONTRIBUTING tell a user to type composes."""
    command, *overrides = (word for word in words if word != "-m")
    if command not in COMMANDS or "--help" in overrides:
        return
    if "--config-dir" in overrides:  # README's own method, tried below
        return
    overrides = [word if word != "method=dpo,simpo" else "method=dpo" for word in overrides]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "hydra_conf"), version_base="1.3"):
        assert compose(config_name=command, overrides=overrides)


def test_the_method_of_the_readme_works(tmp_path, monkeypatch):
    """README's function and YAML as they stand; means −2 and −2.5 and a margin of 1 give 1 − 0.5 = 0.5."""
    (code,) = blocks(section("Adding a method"), "python")
    (text,) = blocks(section("Adding a method"), "yaml")
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "loss.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    method = load_method(yaml.safe_load(text), allow_targets=["my_package"])
    import torch

    from losses import PairLogps

    policy = PairLogps(
        chosen=torch.tensor([-4.0]),
        rejected=torch.tensor([[-5.0, 0.0]]),
        chosen_length=torch.tensor([2]),
        rejected_length=torch.tensor([[2, 0]]),
    )
    assert method.loss(policy, None).loss.tolist() == [0.5]


# ---- all documents


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_targets(path):
    """Relative links resolve, with their anchors; every `make` target that is named exists."""
    text = path.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", t).strip().lower().replace(" ", "-") for t in titles}, (
                link
            )
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", text, flags=re.MULTILINE)) <= set(targets)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_backticks_exist(path):
    """`align/…`, `tests/…` and so on name files that are there."""
    for name in re.findall(
        r"`((?:align|losses|hydra_conf|tests|launchers|benchmarks|docs)/[\w./-]+)`", path.read_text()
    ):
        assert (ROOT / name).exists(), name


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert latest is not None
    assert project["version"] == align.__version__ == latest[1]


def test_extras_of_the_readme_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"\.\[([\w,]+)\]", README)
    assert {extra for names in named for extra in names.split(",")} <= set(extras)
    assert {f"`{name}`" for name in extras} <= set(re.findall(r"`[\w-]+`", section("Installation")))


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
