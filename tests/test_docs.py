"""README and the documentation: blocks run or compose, figures and tables come from files, links lead somewhere."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from align.cli import COMMANDS
from docs.figures import faults
from docs.pictures.__main__ import NAMES as PICTURES
from docs.pictures.style import FOLDER, save, texts
from docs.tables import all_tables, marked
from tests.doc_blocks import (
    LANGUAGES,
    PAGES,
    ROOT,
    Block,
    blocks,
    check_command,
    commands,
    composed,
    extras,
    missing_names,
    named_file,
    rows_in,
    rows_of,
    targets,
    write_files,
)

BLOCKS = [block for page in PAGES for block in blocks(page)]
README = (ROOT / "README.md").read_text()


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


# ---- blocks


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_says_what_it_is(block):
    """`text` marks what is shown and not typed: output, messages, sketches."""
    assert block.language in LANGUAGES


@pytest.mark.parametrize("block", of("bash"), ids=str)
def test_commands_compose_or_exist(block, tmp_path):
    write_files(block.page, tmp_path)
    typed = list(commands(block.text))
    assert typed
    for words in typed:
        check_command(words, tmp_path)


@pytest.mark.parametrize("block", of("yaml"), ids=str)
def test_configuration_is_a_file_that_a_command_chooses(block):
    """A block names its file, FOLDER/GROUP/NAME.yaml; a command of the page has `--config-dir FOLDER GROUP=NAME`.

    A group may lie in another, as `data/order`.
    """
    name = named_file(block)
    assert name is not None, "the first line has to name the file"
    folder, *groups, file = name.parts
    group = "/".join(groups)
    chosen = [
        words
        for other in blocks(block.page)
        if other.language == "bash"
        for words in commands(other.text)
        if f"{group}={Path(file).stem}" in words and folder in words
    ]
    assert chosen, f"no command of the page chooses {name}"
    assert isinstance(yaml.safe_load(block.text), dict)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_rows_are_read(block, tmp_path):
    assert rows_of(block, tmp_path) == len(block.text.splitlines())


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_has_what_it_imports(block, tmp_path):
    """Names of ours exist, rows are rows; a block that uses losses alone is run."""
    tree = ast.parse(block.text)
    missing = missing_names(tree)
    assert not missing
    for rows in rows_in(tree):
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        assert rows_of(replace(block, text=lines), tmp_path) == len(rows)
    imported = re.findall(r"^(?:import|from) (\w+)", block.text, flags=re.MULTILINE)
    if set(imported) <= {"torch", "losses"}:
        exec(compile(tree, str(block), "exec"), {"__name__": "block"})


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["frobnicate"], "no rule covers"),
        (["align", "trian"], "no command trian"),
        (["make", "tea"], "make"),
        (["python", "-m", "benchmarks.nothing"], "no script"),
        (["python", "-m", "benchmarks.parity", "--nothing"], "has no --nothing"),
        (["pip", "install", "-e", ".[nothing]"], "nothing"),
        (["align", "train", "--config-dir", "nowhere"], "no block makes nowhere"),
    ],
)
def test_the_rules_refuse(words, complaint, tmp_path):
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        check_command(words, tmp_path)


@pytest.mark.parametrize("override", ["colour=1", "method=nothing", "model.lora.rank=1", "method=dpo,simpo"])
def test_what_does_not_compose_is_found(override, tmp_path):
    with pytest.raises(Exception, match=r"colour|nothing|rank|sweep|Ambiguous"):
        composed("train", [override])


def test_every_job_of_a_sweep_is_composed():
    assert composed("train", ["-m", "method=dpo,simpo", "seed=1,2"]) == 4
    with pytest.raises(Exception, match="nothing"):
        composed("train", ["-m", "method=dpo,nothing"])


def test_every_command_is_shown():
    shown = {words[1] for block in of("bash") for words in commands(block.text) if words[:1] == ["align"]}
    assert shown == set(COMMANDS)


def test_the_method_of_the_documentation_works(tmp_path, monkeypatch):
    """The function and the YAML as they stand; means −2 and −2.5 and a margin of 1 give 1 − 0.5 = 0.5."""
    import torch
    from hydra.utils import instantiate

    from align.training.methods import load_method
    from losses import PairLogps

    write_files(ROOT / "docs" / "extending.md", tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    conf = yaml.safe_load((tmp_path / "my_conf" / "method" / "hinge.yaml").read_text())
    for loss in (instantiate(conf["loss"]), load_method(conf, allow_targets=["my_package"]).loss):
        policy = PairLogps(
            chosen=torch.tensor([-4.0]),
            rejected=torch.tensor([[-5.0, 0.0]]),
            chosen_length=torch.tensor([2]),
            rejected_length=torch.tensor([[2, 0]]),
        )
        assert loss(policy, None).loss.tolist() == [0.5]


# ---- figures, tables, pictures


@pytest.fixture(scope="module")
def tables():
    return all_tables()


def test_tables_are_what_the_files_give(tables):
    for (page, name), made in tables.items():
        assert marked((ROOT / page).read_text(), name) == made, (
            f"{page}: {name}; python -m docs.tables writes it"
        )


def test_every_marked_table_is_made(tables):
    for page in PAGES:
        for name in re.findall(r"<!-- ([\w ]+): begin -->", page.read_text()):
            assert (str(page.relative_to(ROOT)), name) in tables or name == "two hosts", f"{page}: {name}"


def test_figures_in_sentences_come_from_files():
    assert list(faults()) == []


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_show_what_the_files_give(name, tmp_path):
    """Every number and word of a picture; its file is small, and a page shows it."""
    save(importlib.import_module(f"docs.pictures.{name}").draw(), tmp_path / "new.svg")
    committed = FOLDER / f"{name}.svg"
    assert texts(committed) == texts(tmp_path / "new.svg")
    assert len(texts(committed)) > 3
    assert len(committed.read_text().splitlines()) < 300
    assert any(f"pictures/{name}.svg)" in page.read_text() for page in PAGES)


# ---- the whole


def test_the_tree_is_the_repositorys():
    """CONTRIBUTING's: every name of it exists; every top-level folder of code, package folder and command is named."""
    text = (ROOT / "CONTRIBUTING.md").read_text().split("\n## The tree\n")[1].split("\n## ")[0]
    (tree,) = re.findall(r"```text\n(.*?)```", text, flags=re.DOTALL)
    parents: dict[int, Path] = {0: ROOT}
    named = set()
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        first, _, words = line.strip().partition(" ")
        here = parents[depth] / first
        parents[depth + 2] = here
        assert here.exists(), first
        named.add(here)
        for other in re.findall(r"[\w./*]+\.(?:py|yaml)\b", words):
            assert any(here.glob(other)) if here.is_dir() else (here.parent / other).exists(), other
    folders = {path for path in (ROOT / "align").iterdir() if list(path.glob("[!_]*.py"))}
    code = {ROOT / name for name in ("align", "losses", "hydra_conf", "launchers", "tests")}
    code |= set(folders | {ROOT / "align" / f"{name}.py" for name in COMMANDS})
    assert code - {ROOT / "align"} <= named


def test_readme_is_short():
    assert len(README.splitlines()) <= 200


@pytest.mark.parametrize("page", ["README.md", "docs/methods.md"])
def test_the_table_lists_every_method_with_its_paper(page):
    """The arXiv number of a method's row stands in its YAML."""
    methods = {path.stem: path.read_text() for path in (ROOT / "hydra_conf" / "method").glob("*.yaml")}
    section = re.split(r"^#+ (?:Your own|The reference)", (ROOT / page).read_text(), flags=re.MULTILINE)[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", section, flags=re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted(methods)
    for name, paper in rows:
        number = re.search(r"\[(\d{4}\.\d{5})\]\(https://arxiv.org/abs/(\d{4}\.\d{5})\)", paper)
        assert number is None or number[1] == number[2]
        of_no_paper = name in ("sft", "row_weighted_dpo")
        assert of_no_paper if number is None else number[1] in methods[name], name


def test_extras_are_listed():
    section = (ROOT / "docs" / "quickstart.md").read_text().split("\n## Installation\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", section, flags=re.MULTILINE)) == extras()


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub and the site agree on."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = [re.sub(r"[^\w\- ]", "", t).strip().lower() for t in re.findall(r"^#+ (.+)$", text, flags=re.M)]
    return {title.replace(" ", "-") for title in titles if "  " not in title}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_targets_and_paths(page):
    """Relative links resolve, with their anchors; named targets and paths exist; the site's links stay in it."""
    text = page.read_text()
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert page.parent != ROOT / "docs" or target.is_relative_to(ROOT / "docs"), link
        assert not anchor or anchor in anchors(target), link
    assert set(re.findall(r"(?:`|^)make ([\w-]+)", text, flags=re.MULTILINE)) <= set(targets())
    named = r"`((?:align|losses|hydra_conf|tests|launchers|benchmarks|docs)/[\w./-]+)`"
    for name in re.findall(named, text):
        assert (ROOT / name).exists() or "NAME" in name, name


def test_the_site_has_every_page():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r"^ +- ([\w-]+\.md)$", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    for page in tmp_path.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]+(?:src|href)=\"(https?:[^\"]+)", page.read_text())
        assert not loaded, page
