"""A command in a process of its own ends with the one that started it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.runs import exit_codes
from align.runs.children import run_child

# Says who it is, and leaves a mark when it is asked to end.
CHILD = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
def end(number, frame):
    (folder / "asked").touch()
    sys.exit(3)
signal.signal(signal.SIGTERM, end)
(folder / "pid.new").write_text(str(os.getpid()))
(folder / "pid.new").rename(folder / "pid")
time.sleep(60)
"""
PARENT = """
import sys
from align.runs.children import run_child
sys.exit(run_child([sys.executable, "-c", *sys.argv[1:]]))
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.05)


def ended(pid: int) -> bool:
    """Also where nobody has asked for its exit code yet: a container's first process may never ask."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_the_exit_code_is_the_commands():
    assert run_child([sys.executable, "-c", "raise SystemExit(7)"]) == 7
    assert run_child([sys.executable, "-c", ""]) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["asked to end", "killed"])
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's signal at a parent's death is Linux's")
def test_the_command_ends_too(tmp_path, number):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, CHILD, str(tmp_path)])
    wait_for(tmp_path / "pid")
    child = int((tmp_path / "pid").read_text())
    parent.send_signal(number)
    assert parent.wait(60) == (exit_codes.STOPPED if number == signal.SIGTERM else -signal.SIGKILL)
    wait_for(tmp_path / "asked")
    deadline = time.monotonic() + 60
    while not ended(child):
        assert time.monotonic() < deadline, "the command lives on"
        time.sleep(0.05)
