"""Runs of `align train` beside stage `step`: reference margins before the first step, and a run that is killed.

Each is a process of its own, and all run side by side. Without a GPU they are forked from a server that has imported
the libraries, so that a start takes a second; beside a GPU, which a forked process may not use, they start anew.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from benchmarks.gpu.context import Context
from benchmarks.gpu.exactness import error_of

STEPS, SAVED = 20, 5  # the run is killed once its first checkpoint is there
SAME = 1e-5  # bound on the weights of a resumed run; kernels of a GPU add in no fixed order
PRECISIONS = {
    "float32": ("model.dtype=float32", "trainer.bf16=false"),
    "float32 under bf16 autocast": ("model.dtype=float32", "trainer.bf16=true"),
    "bfloat16": ("model.dtype=bfloat16", "trainer.bf16=false"),
}
METHODS = (
    "dpo",
    "ipo",
    "robust_dpo",
    "longwriter_dpo",
)  # whose reference is the starting model on the same rows
SMALL = [("dpo", "float32"), ("dpo", "bfloat16")]

COMMON = (
    *("trainer.gradient_accumulation_steps=1", "trainer.learning_rate=0.01", "trainer.optim=sgd"),
    *("data.eval_size=4", "trainer.lr_scheduler_type=constant"),
)


LONG = (
    *("method=dpo", "model.dtype=float32", "trainer.bf16=false", f"trainer.max_steps={STEPS}"),
    *(f"trainer.save_steps={SAVED}", "trainer.save_total_limit=null"),
)


class Trains:
    """Starts the runs; `margins` and `resumed` wait for them and say what they found."""

    def __init__(self, folder: Path, context: Context) -> None:
        from tests.rows import make_rows
        from tests.tiny import save_tiny

        self._folder, self._context = folder, context
        save_tiny(folder / "model")
        make_rows(folder / "rows.jsonl", 30)
        self._begun: list[Any] = []
        self._processes = multiprocessing.get_context("spawn" if context.device.cuda else "forkserver")
        self._processes.set_forkserver_preload(["align.train", "align.training.setup", "align.planning.fit"])
        every = list(product(METHODS, PRECISIONS))
        self._margins = {
            f"{method}, {precision}": self._start(
                f"{method}-{precision.replace(' ', '_')}",
                f"method={method}",
                *PRECISIONS[precision],
                "trainer.max_steps=1",
            )
            for method, precision in context.of_scale(every, SMALL)
        }
        self._unbroken = self._start("unbroken", *LONG)
        self._killed = ThreadPoolExecutor(1).submit(self._kill_and_go_on)

    def _start(self, name: str, *overrides: str) -> Any:
        paths = (f"data.path={self._folder / 'rows.jsonl'}", f"model.path={self._folder / 'model'}")
        words = ["align", "train", *paths, f"output={self._folder / name}", *COMMON, *overrides]
        process = self._processes.Process(target=_command, args=(words, self._folder / f"{name}.log"))
        process.start()
        self._begun.append(process)
        return process

    def close(self) -> None:
        """Ends what still runs."""
        for process in self._begun:
            process.kill()
            process.join()

    def _wait(self, process: Any, name: str) -> None:
        process.join(max(1.0, self._context.left()))
        if process.exitcode != 0:
            code = process.exitcode
            process.kill()
            log = self._folder / f"{name}.log"
            said = log.read_text()[-1200:] if log.exists() else ""
            raise RuntimeError(f"align train {name} ended with {code}: {said}")

    def margins(self) -> dict[str, Any]:
        """Rewards of held-out rows before the first step, which are 0: the policy is still its reference."""
        found = {}
        for name, process in self._margins.items():
            folder = name.replace(", ", "-").replace(" ", "_")
            self._wait(process, folder)
            before = json.loads((self._folder / folder / "before.json").read_text())
            found[name] = {
                key.split("/")[1]: before[key] for key in before if "rewards/" in key and "acc" not in key
            }
        return {
            "rewards": found,
            "passed": all(one and set(one.values()) == {0.0} for one in found.values()),
        }

    def resumed(self) -> dict[str, Any]:
        """Weights after 20 steps of a run that was killed and went on, against a run that was not."""
        self._wait(self._unbroken, "unbroken")
        killed_at = self._killed.result()
        one, other = (
            load_file(self._folder / name / "model" / "model.safetensors") for name in ("unbroken", "killed")
        )
        worst = max(error_of(other[name], one[name]) for name in one)
        return {"worst": worst, "killed with": killed_at, "passed": worst <= SAME}

    def _kill_and_go_on(self) -> list[str]:
        """The checkpoints that were there when the run was killed; the same command then goes on from the last."""
        folder = self._folder / "killed"
        process = self._start("killed", *LONG)
        while not (folder / f"checkpoint-{SAVED}").exists():
            if not process.is_alive() or self._context.left() <= 0:
                self._wait(process, "killed")
                raise RuntimeError("align train was done before it could be killed")
            time.sleep(0.002)
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError("align train was done before it could be killed")
        there = sorted(path.name for path in folder.glob("checkpoint-*"))
        self._wait(self._start("killed", *LONG), "killed")
        return there


def _command(words: Sequence[str], log: Path) -> None:
    """The command in this process; what it says goes to `log`."""
    from align import cli

    with open(log, "a") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    sys.argv = list(words)
    cli.main()
