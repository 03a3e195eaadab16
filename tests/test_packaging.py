"""What a user gets: the wheel, built from the sdist, installed in an empty environment and run from `/`.

The environment is new and holds the wheel alone; a .pth file lets it see the dependencies of the current
one. A .pth file that stands in a folder reached that way is not read, so the editable checkout stays out.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PACKAGES = ("align", "losses", "hydra_conf")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"


def build(kind: str, source: Path, target: Path) -> Path:
    """`sdist` or `wheel` of `source` by the backend that pyproject.toml names."""
    target.mkdir(exist_ok=True)
    subprocess.run(
        [sys.executable, "-c", BUILD.format(kind=kind), str(target)],
        cwd=source,
        check=True,
        capture_output=True,
    )
    (built,) = target.iterdir()
    return built


NAMES = {
    "yaml": "pyyaml",
    "hydra": "hydra-core",
    "lm_eval": "lm-eval",
    "liger_kernel": "liger-kernel",
}  # imported as → package, where they differ


def imported() -> set[str]:
    """Packages that the wheel's modules import, without Python's own and ours."""
    found = set()
    for path in (file for folder in PACKAGES for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.partition(".")[0])
    return {NAMES.get(name, name) for name in found - set(sys.stdlib_module_names) - set(PACKAGES)}


def test_what_is_imported_is_declared():
    """As a dependency or an extra of its own, not by way of another package; pins are within the bounds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = project["dependencies"] + [line for name in extras if name != "test" for line in extras[name]]
    declared = {(one := Requirement(line)).name.lower(): one.specifier for line in lines}
    assert imported() <= set(declared)
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if version and name.lower() in declared:
            assert declared[name.lower()].contains(version), line


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the sdist, which is built from a copy: neither leaves anything in the checkout."""
    folder = tmp_path_factory.mktemp("build")
    copy = folder / "copy"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    with tarfile.open(build("sdist", copy, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    return build("wheel", unpacked, folder / "wheel")


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """The `bin` folder of a new environment with the wheel."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-index", str(wheel)], check=True, capture_output=True)
    seen = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join(seen) + "\n")
    return folder / "bin"


def run(*command: str | Path) -> str:
    """Standard output of a command run from `/`, without this process's PYTHONPATH."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd="/", env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_file_of_the_packages(wheel):
    copy = wheel.parent.parent / "copy"
    wanted = {
        str(path.relative_to(copy))
        for name in PACKAGES
        for pattern in ("*.py", "*.yaml", "py.typed")
        for path in (copy / name).rglob(pattern)
    }
    held = set(zipfile.ZipFile(wheel).namelist())
    assert wanted <= held
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == set(PACKAGES)
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert {"align/py.typed", "losses/py.typed", "hydra_conf/train.yaml"} <= held


def test_the_packages_come_from_the_wheel(environment):
    code = "import importlib, sys; [print(importlib.import_module(name).__file__) for name in sys.argv[1:]]"
    for path in run(environment / "python", "-c", code, *PACKAGES).split():
        assert Path(path).is_relative_to(environment.parent), path


def test_help_names_the_methods(environment):
    text = run(environment / "align", "train", "--help")
    methods = next(line for line in text.splitlines() if line.startswith("method:"))
    shown = {name.strip() for name in methods.removeprefix("method:").split(",")}
    assert shown == {path.stem for path in (ROOT / "hydra_conf" / "method").glob("*.yaml")}


def test_the_configuration_composes(environment):
    text = run(environment / "align", "train", "--cfg", "job", "method=dpo")
    assert "_target_: losses.dpo_loss" in text
