"""The process in which stages run: orders come as JSON lines, findings go back as JSON lines.

    hello      {"card": …, "cuda": true, "versions": {…}}
    order      {"target": "benchmarks.gpu.kernels:run", "scale": "full", "seconds": 60, "layers": 8}
    finding    {"name": …, "value": …}, as often as there are some
    its end    {"ended": null}, or the last lines of a traceback

A process of its own because a GPU that has met an illegal access, or a library that hangs, must not take the other
stages along: the parent (parent.py) starts another one.
"""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import json
import os
import platform
import signal
import sys
import threading
import time
from typing import IO, Any

from align.core.files import jsonable
from benchmarks.gpu.context import Context, last_lines
from benchmarks.gpu.device import Device

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "liger-kernel",
    "flash-attn",
    "flash-attn-4",
)


def main() -> None:
    """Greets, then does what each line asks for."""
    pipe = _claim_stdout()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    device = Device()
    _say(pipe, {"card": device.card, "cuda": device.cuda, "versions": versions()})
    for line in sys.stdin:
        _say(pipe, {"ended": do(json.loads(line), pipe)})


def do(order: dict[str, Any], pipe: IO[str]) -> str | None:
    """Runs one stage; the last lines of the traceback that ended it, or None."""
    device = Device(order["scale"])
    context = Context(
        device,
        order["scale"],
        time.monotonic() + order["seconds"],
        lambda name, value: _say(pipe, {"name": name, "value": value}),
        order["layers"],
    )
    try:
        module, _, function = order["target"].partition(":")
        stage = getattr(importlib.import_module(module), function)
        gc.freeze()  # the libraries' objects need not be looked at whenever a cell is cleaned away
        stage(context)
    except Exception as error:
        return last_lines(error)
    finally:
        device.clean()
    return None


def versions() -> dict[str, str]:
    """Of Python and of the packages that are there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _end_with(parent: int) -> None:
    """Ends this process, and those that it has started, once its parent is gone: nobody would read what it finds."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _claim_stdout() -> IO[str]:
    """The pipe to the parent; what libraries print goes to stderr from here on."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return pipe


def _say(pipe: IO[str], content: dict[str, Any]) -> None:
    print(json.dumps(jsonable(content)), file=pipe, flush=True)


if __name__ == "__main__":
    main()
