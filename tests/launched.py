"""`align train` as `accelerate launch` starts it, but for one process that goes its own way.

    accelerate launch --multi_gpu --num_processes 2 -m tests.launched WAY key=value …

The process of rank 1 does what WAY says: `seed=7` (any override of its own), `in_data` or `in_loss` (raises there),
`fewer_rows` (reads four of them).
Before it raises it prints the time, so that a test can tell how long the others took to end.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from typing import Any

import align.train
from align.data.dataset import PreferenceData
from align.train import read_data
from align.training.run import Run
from align.training.trainer import PreferenceTrainer


def explode(*args: Any, **kwargs: Any) -> Any:
    """What a defect, a full disk or a killed node looks like to the other processes."""
    print(f"raises at {time.time():.0f}", file=sys.stderr, flush=True)
    raise RuntimeError("rank 1 ran into a wall")


class FailingTrainer(PreferenceTrainer):
    """Raises in the second micro-batch, while the other process computes."""

    calls = 0

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        FailingTrainer.calls += 1
        return explode() if FailingTrainer.calls == 2 else super().compute_loss(*args, **kwargs)


def fewer_rows(run: Run, tokenizer: Any) -> PreferenceData:
    """As where a file was copied to one machine only in part."""
    return read_data(replace(run, data=replace(run.data, limit=4)), tokenizer)


FAILURES: dict[str, tuple[str, Any]] = {
    "in_loss": ("PreferenceTrainer", FailingTrainer),
    "in_data": ("read_data", explode),
    "fewer_rows": ("read_data", fewer_rows),
}


def main() -> None:
    way = sys.argv.pop(1)
    if os.environ["RANK"] == "1":
        if way in FAILURES:
            setattr(align.train, *FAILURES[way])
        else:
            sys.argv.append(way)
    align.train.main()


if __name__ == "__main__":
    main()
