"""The end of a process that was in a process group: without finalising the interpreter."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def leaves_process_group() -> Iterator[None]:
    """What runs inside may join a process group; the process then ends here, with the exit code that it has earned.

    A group that was joined before is the caller's, and so is the end of the process.

    A gloo thread that drops a tensor takes the interpreter's lock, and the process aborts where that happens while
    the interpreter finalises (pytorch/pytorch#190489): the launcher would report a finished run as failed, and other
    machines would wait for this one. `destroy_process_group` alone does not end these threads, as DDP and DeepSpeed
    keep references to the group. So threads and exit functions get their turn, and then the process ends.
    """
    code: object = None
    joined_before = _in_group()
    try:
        yield
    except SystemExit as ended:
        code = ended.code
        if joined_before or not _in_group() or not isinstance(code, int | None):
            raise
    if _in_group() and not joined_before:
        _end_process(code if isinstance(code, int) else 0)


def _in_group() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _end_process(code: int) -> None:
    """Everything that Python does at its end but taking the interpreter down.

    Raises:
        BrokenPipeError: who read the output has stopped.
    """
    sys.stdout.flush()
    if code == 0:  # after a failure other processes may wait in a collective of the group
        sys.modules["torch.distributed"].destroy_process_group()
    threading._shutdown()  # type: ignore[attr-defined]  # joins all but daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
