"""Locks that a killed start of DeepSpeed has left: every later start waits until they are gone, without a word.

DeepSpeed compiles parts of itself at their first use, through `torch.utils.cpp_extension`, which keeps a file `lock`
beside what it builds for as long as that takes, open in the process that builds (`torch.utils.file_baton`).
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

from align.core.errors import AlignWarning

PROCESSES = Path("/proc")


def warn_of_left_locks(*, asked: bool = False, environment: Mapping[str, str] = os.environ) -> None:
    """Names locks that no process of this machine holds, where DeepSpeed is about to start; deletes none.

    Another machine may be building in the same home folder, which cannot be seen from here: the age tells.

    Args:
        asked: whether DeepSpeed is asked for by other means than the launcher's environment.
        environment: of the launcher; the machine's first process speaks.
    """
    asked = asked or environment.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if not asked or environment.get("LOCAL_RANK", "0") != "0":
        return
    for lock in left_locks(Path(environment.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())):
        try:
            minutes = (time.time() - lock.stat().st_mtime) / 60
        except FileNotFoundError:  # its owner has ended meanwhile
            continue
        warnings.warn(
            f"{lock} is {minutes:.0f} minutes old and no process of this machine has it open: a start of DeepSpeed "
            "that was killed has probably left it, and this one waits until it is gone; delete it, unless another "
            "machine is compiling there now.",
            AlignWarning,
            stacklevel=1,
        )


def left_locks(root: Path) -> list[Path]:
    """The files `lock` of single extensions below torch's folder of them that nobody has open."""
    locks = {path.resolve() for pattern in ("*/lock", "*/*/lock") for path in root.glob(pattern)}
    return sorted(locks - set(_open_files())) if locks else []


def _open_files() -> Iterator[Path]:
    """Every file that a process of ours has open on this machine (Linux; elsewhere none is known)."""
    for link in PROCESSES.glob("[0-9]*/fd/*"):
        try:
            yield link.readlink()
        except OSError:  # the process or the file is gone, or another user's
            continue
