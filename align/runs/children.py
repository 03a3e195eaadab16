"""Commands run in a process of their own: `align rounds` and the jobs of a sweep."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType

from align.runs import exit_codes

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_child(command: Sequence[str]) -> int:
    """Exit code of the command; SIGTERM is passed on to it, and then counts as the end of this process.

    Where this process is killed outright, the command gets SIGTERM (on Linux): started again, it finds its folder
    to itself.

    Args:
        command: its words; it shares this process's output.
    """
    told = False

    def forward(number: int, frame: FrameType | None) -> None:
        nonlocal told
        told = True
        process.send_signal(number)

    process = subprocess.Popen(command, preexec_fn=_end_with_parent)
    before = signal.signal(signal.SIGTERM, forward)
    try:
        code = process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
    return exit_codes.STOPPED if told else code


def _end_with_parent() -> None:
    """In the child, before its program starts: asks the kernel for SIGTERM at the parent's death."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
