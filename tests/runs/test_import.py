"""Importing the toolkit asks nothing of a GPU: a process that only imports opens no context, and can still fork."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Every function of torch that may start CUDA notes who calls it; then all modules are imported.
PROGRAM = """
import importlib, json, pkgutil, sys, types
import torch
seen = []
def noting(name, function):
    def noted(*args, **kwargs):
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if caller.partition(".")[0] in ("align", "losses", "hydra_conf"):
            seen.append(f"{caller}: {name}")
        return function(*args, **kwargs)
    return noted
for module in (torch.cuda, torch.accelerator):
    for name, value in list(vars(module).items()):
        if isinstance(value, types.FunctionType) and not name.startswith("_"):
            setattr(module, name, noting(f"{module.__name__}.{name}", value))
count = 0
for package in ("align", "losses", "hydra_conf"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
            count += 1
print(json.dumps([count, seen, torch.cuda.is_initialized()]))
"""


def run_at_import(node: ast.AST) -> Iterator[ast.Call]:
    """Calls that run when a module is imported: outside of functions, but for their decorators and defaults."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Lambda):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            parts = [*child.decorator_list, *child.args.defaults, *filter(None, child.args.kw_defaults)]
            for part in parts:
                yield from run_at_import(ast.Expr(part))
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from run_at_import(child)


def test_no_module_calls_cuda_when_it_is_imported():
    """By its source; the test below, which takes longer, by what is called."""
    seen = [
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call.func)}"
        for package in ("align", "losses", "hydra_conf", "benchmarks")
        for path in (ROOT / package).rglob("*.py")
        for call in run_at_import(ast.parse(path.read_text()))
        if ast.unparse(call.func).startswith(("torch.cuda", "torch.accelerator"))
    ]
    assert seen == []
    (found,) = run_at_import(
        ast.parse("def f(x=torch.cuda.is_available()):\n    return torch.cuda.device_count()")
    )
    assert ast.unparse(found.func) == "torch.cuda.is_available"


@pytest.mark.slow
def test_importing_every_module_calls_nothing_of_cuda():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True
    )
    count, seen, initialized = json.loads(done.stdout.splitlines()[-1])
    assert count > 300 and seen == [] and not initialized
