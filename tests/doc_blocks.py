"""The fenced blocks of README and the documentation, and the rule for each language and each command.

A block is marked bash, yaml, python or json, and then it has to run or compose; or text, which says that it shows
something. A block, or a command, that no rule covers is an error.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from align.cli import COMMANDS

ROOT = Path(__file__).parent.parent
CONF = ROOT / "hydra_conf"
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
)
LANGUAGES = ("bash", "yaml", "python", "json", "text")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, its language, the line that it begins at, its text."""

    page: Path
    language: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line} {self.language or '(unmarked)'}"


def blocks(page: Path) -> Iterator[Block]:
    """Every fenced block of a page, indented ones too."""
    lines = enumerate(page.read_text().splitlines(), start=1)
    for number, line in lines:
        opened = re.match(r"(\s*)(`{3,}|~{3,})(.*)$", line)
        if opened is None:
            continue
        indent, fence, language = opened.groups()
        inside = []
        for _, text in lines:
            if text.strip().startswith(fence):
                break
            inside.append(text.removeprefix(indent))
        else:
            raise AssertionError(f"{page}:{number} is never closed")
        yield Block(page, language.strip(), number, "".join(f"{text}\n" for text in inside))


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell block as words, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for together, own in itertools.groupby(words, key=lambda word: word in ("&&", ";", "|")):
            if not together:
                yield list(own)


# ---- what a command of ours composes to


def composed(command: str, words: Sequence[str], folder: Path | None = None) -> int:
    """Composes `align COMMAND WORDS…`, under `-m` every job of it; returns how many configurations there were.

    Args:
        command: of `align`.
        words: flags of Hydra's and overrides.
        folder: where the page's files lie; `--config-dir` names a folder in it.
    """
    assert command in COMMANDS, f"align has no command {command}"
    overrides, options = [], {}
    rest = iter(words)
    for word in rest:
        if word in ("--config-dir", "--cfg", "-c"):
            options[word] = next(rest)
        elif word.startswith("-"):
            assert word in ("-m", "--multirun", "--help"), f"{word} is no flag that this test knows"
            options[word] = ""
        else:
            overrides.append(word)
    assert options.get("--cfg", "job") in ("job", "hydra", "all")
    if "--config-dir" in options:
        assert folder is not None
        assert (folder / options["--config-dir"]).is_dir(), f"no block makes {options['--config-dir']}"
        overrides.append(f"hydra.searchpath=[file://{folder / options['--config-dir']}]")
    jobs = list(expanded(overrides)) if {"-m", "--multirun"} & options.keys() else [overrides]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for job in jobs:
            config = compose(command, overrides=job, return_hydra_config=True)
            params = config.hydra.sweeper.get("params") or {}
            for swept in expanded([f"{key}={value}" for key, value in params.items()]) if params else ():
                compose(command, overrides=[*job, *swept])
    return len(jobs)


def expanded(overrides: Sequence[str]) -> Iterator[list[str]]:
    """One list of overrides for each job of a sweep."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    choices = [
        [f"{one.key_or_group}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line or ""]
        for one in parsed
    ]
    for job in itertools.product(*choices):
        yield list(job)


# ---- a rule for each program


def check_command(words: list[str], folder: Path) -> None:
    """Runs the rule of the command's program; AssertionError where it is wrong or where there is no rule."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words:
        return
    program, *rest = words
    assert program in RULES, f"no rule covers: {shlex.join(words)}"
    RULES[program](rest, folder)


def _align(words: list[str], folder: Path) -> None:
    if words:
        composed(words[0], words[1:], folder)


def _accelerate(words: list[str], folder: Path) -> None:
    """`accelerate launch OPTIONS -m align.COMMAND …`."""
    assert words[0] == "launch"
    at = words.index("-m")
    options = dict(zip(words[1:at:2], words[2:at:2], strict=True))
    assert options.keys() <= {"--config_file", "--num_processes", "--num_machines"}, options
    assert (ROOT / options["--config_file"]).is_file(), options
    assert words[at + 1].startswith("align.")
    composed(words[at + 1].removeprefix("align."), words[at + 2 :], folder)


def _python(words: list[str], folder: Path) -> None:
    """`python -m MODULE …` and `python FILE …`: the module is there and knows the options."""
    if words[0] == "-m" and words[1].startswith("align."):
        composed(words[1].removeprefix("align."), words[2:], folder)
        return
    name, options = (
        (words[1].replace(".", "/"), words[2:])
        if words[0] == "-m"
        else (words[0].removesuffix(".py"), words[1:])
    )
    found = [path for path in (ROOT / f"{name}.py", ROOT / name / "__main__.py") if path.is_file()]
    assert len(found) == 1, f"{name} is no script of this repository"
    text = found[0].read_text()
    for module in re.findall(r"^from (benchmarks[\w.]*) import", text, flags=re.MULTILINE):
        other = ROOT / f"{module.replace('.', '/')}.py"  # grids of cells share their command line
        text += other.read_text() if other.is_file() else ""
    for option in options:
        assert not option.startswith("--") or f'"{option}"' in text, f"{name} has no {option}"


def _make(words: list[str], folder: Path) -> None:
    assert set(words) <= set(targets()), f"make {words}"


def targets() -> list[str]:
    """Makefile's targets."""
    return re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def extras() -> set[str]:
    """pyproject's extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


def _pip(words: list[str], folder: Path) -> None:
    """Extras of a checkout and constraint files are there; names of packages are the registry's business."""
    assert words[0] == "install"
    for flag, value in itertools.pairwise(words):
        if flag == "-c":
            assert (ROOT / value).is_file(), value
        if flag == "-e":
            named = re.fullmatch(r"\.(?:\[([\w,-]+)\])?", value)
            assert named is not None, value
            assert set((named[1] or "test").split(",")) <= extras(), value


def _pytest(words: list[str], folder: Path) -> None:
    for word in words:
        assert word.startswith("-") or "/" not in word or (ROOT / word).exists(), word


def _multi_node(words: list[str], folder: Path) -> None:
    assert (ROOT / "launchers" / "accelerate" / f"{words[0]}.yaml").is_file(), words[0]
    composed("train", words[1:], folder)


def _two_hosts(words: list[str], folder: Path) -> None:
    check_command(words, folder)


def _sbatch(words: list[str], folder: Path) -> None:
    at = next(i for i, word in enumerate(words) if not word.startswith("--"))
    assert words[at] == "launchers/slurm.sbatch"
    _multi_node(words[at + 1 :], folder)


def _source(words: list[str], folder: Path) -> None:
    assert [(ROOT / word).is_file() for word in words] == [True], words


def _export(words: list[str], folder: Path) -> None:
    assert all(re.fullmatch(r"[A-Z_]+=.*", word) for word in words), words


RULES = {
    "align": _align,
    "accelerate": _accelerate,
    "python": _python,
    "make": _make,
    "pip": _pip,
    "pytest": _pytest,
    "benchmarks/gpu/run.sh": lambda words, folder: _python(["-m", "benchmarks.gpu", *words], folder),
    "launchers/multi_node.sh": _multi_node,
    "launchers/two_hosts.sh": _two_hosts,
    "sbatch": _sbatch,
    "source": _source,
    "export": _export,
}


# ---- files, rows, imports


def named_file(block: Block) -> Path | None:
    """The file that a block says it is, by its first line, after Hydra's: `# my_conf/method/hinge.yaml`."""
    first = re.match(r"(?:# @package \w+\n)?# ([\w/]+\.(?:yaml|py))\n", block.text)
    return None if first is None else Path(first[1])


def write_files(page: Path, folder: Path) -> dict[Path, Block]:
    """Writes the page's named files below `folder`."""
    written = {}
    for block in blocks(page):
        name = named_file(block)
        if name is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
            written[name] = block
    return written


def rows_of(block: Block, folder: Path) -> int:
    """Reads a block's rows as `data.path` does; returns how many there are."""
    from align.data.columns import Columns
    from align.data.formats import parse_row
    from align.data.numbers import Number
    from align.data.piece_rows import is_pieces, read_pieces
    from align.data.sources import open_sources, read_rows
    from align.data.text_rows import is_text, read_text

    rows = [json.loads(line) for line in block.text.splitlines() if line.strip()]
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for row in read_rows(open_sources(str(path)).train):
        labels = (Number("label", "label", "label"),) if "label" in row.values else ()
        if is_text(row.values):
            read_text(Columns(row.source, row.values))
        elif is_pieces(row.values):
            read_pieces(Columns(row.source, row.values))
        else:
            parse_row(row, numbers=labels)
    return len(rows)


def rows_in(tree: ast.AST) -> Iterator[list[Any]]:
    """Lists of rows that a piece of Python writes out, as the value of `rows` or inside of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["rows"]:
            found = next(part for part in ast.walk(node.value) if isinstance(part, ast.List))
            yield ast.literal_eval(found)


def missing_names(tree: ast.AST) -> list[str]:
    """Names of ours that a piece of Python uses and that are not there: imports, and attributes of `align`."""
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("align", "losses"):
            module = importlib.import_module(str(node.module))
            missing += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] in ("align", "losses"):
                    importlib.import_module(name.name)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "align":
            there = hasattr(importlib.import_module("align"), node.attr)
            missing += [] if there else [f"align.{node.attr}"]
    return missing
