"""Stand-ins for stages of `make gpu`: one that ends well, and those that do not."""

from __future__ import annotations

import os
import time
from dataclasses import replace

from benchmarks.gpu.context import Context


def good(context: Context) -> None:
    context.keep("layers", context.layers)
    context.cells({"one": lambda: 1.0, "wrong": lambda: 1 / 0, "nan": lambda: float("nan")})


def late(context: Context) -> None:
    replace(context, deadline=time.monotonic()).cells({"first": lambda: 1.0})


def raises(context: Context) -> None:
    context.keep("before", 1)
    raise RuntimeError("this stage ends here")


def dies(context: Context) -> None:
    context.keep("before", 2)
    print("last words", flush=True)
    os._exit(3)


def told(context: Context) -> None:
    """Begins, and goes on until somebody ends it."""
    context.keep("process", os.getpid())
    time.sleep(600)


def hangs(context: Context) -> None:
    context.keep("before", 3)
    time.sleep(600)
