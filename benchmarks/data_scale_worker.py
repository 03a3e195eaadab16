"""One start of a command in a process of its own, ended before weights are read; prints what it took as JSON.

Run by data_scale.py as a file, with PYTHONPATH set to the tree whose commands are measured: this tree or an older one.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time


class ReadyToLoad(BaseException):
    """Raised in the place of the function that would read the weights."""


def start(command: str, overrides: list[str]) -> None:
    """`align inspect`, or `align train` up to the point where it would read weights."""
    sys.argv = [f"align {command}", *overrides]
    if command == "inspect":
        from align import inspect

        inspect.main()
        return
    from align import train
    from align.training import setup

    def stop(*_: object) -> None:
        raise ReadyToLoad

    setup.build_trainer = stop
    try:
        train.main()
    except ReadyToLoad:
        return
    raise RuntimeError("the command ended before it came to its weights")


def used() -> dict[str, float]:
    """Seconds of processor time and the peak of memory, of this process and its ended children."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "processor_s": own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
        "peak_gb": max(own.ru_maxrss, children.ru_maxrss) * 1024 / 1e9,
    }


def main() -> None:
    """Arguments: the command, then its overrides."""
    began = time.perf_counter()
    code = 0
    try:
        start(sys.argv[1], sys.argv[2:])
    except SystemExit as end:  # `align inspect` ends with 1 where it has found something
        code = int(end.code or 0)
    found = {"wall_s": time.perf_counter() - began, "code": code, **used()}
    with os.fdopen(int(os.environ["DATA_SCALE_OUT"]), "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()
