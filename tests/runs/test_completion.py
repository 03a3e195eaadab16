"""Completion in bash: a command, a group, its files, a key; by the script that the documentation has people source."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from align.cli import COMMANDS

SCRIPT = Path(__file__).parents[2] / "launchers" / "completion.bash"
# What bash sets when the tab key is pressed behind $1.
PRESS = 'source "$0"; COMP_LINE="$1"; COMP_POINT=${#1}; _align; printf "%s\\n" "${COMPREPLY[@]}"'


def complete(line: str) -> list[str]:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", PRESS, SCRIPT, line], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("align ", set(COMMANDS)),
        ("align re", {"report"}),
        ("align train parallel=", {f"parallel={name}" for name in ("auto", "gather", "none", "ulysses")}),
        ("align train memory.che", {"memory.checkpointing="}),
        ("align nothing pa", set()),
    ],
)
def test_the_tab_key(line, wanted):
    assert set(complete(line)) == wanted
