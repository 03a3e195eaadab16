"""Importing the toolkit asks nothing of a GPU: a process that only imports opens no context, and can still fork."""

from __future__ import annotations

import json
import subprocess
import sys

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


def test_importing_every_module_calls_nothing_of_cuda():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True
    )
    count, seen, initialized = json.loads(done.stdout.splitlines()[-1])
    assert count > 300 and seen == [] and not initialized
