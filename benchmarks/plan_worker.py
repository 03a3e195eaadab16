"""One process of a measured run: two steps of `align train`'s own trainer, a short row and then a long one.

python benchmarks/plan_worker.py '["data.path=rows.jsonl", …]'    # overrides of `align train`, as JSON
"""

from __future__ import annotations

import json
import sys

import hydra
import torch.distributed as dist

from align.models.loading import load_tokenizer
from align.runs.leaving import leaves_process_group
from align.training.peak_memory import peak_memory
from align.training.run import check
from align.training.setup import build_trainer, read_data


def main() -> None:
    """Trains and prints the largest resident set of any process of the run, in bytes; saves nothing."""
    with hydra.initialize_config_module("hydra_conf", version_base="1.3"):
        run = check(hydra.compose("train", json.loads(sys.argv[1])))
    tokenizer = load_tokenizer(run.model.path)
    trainer = build_trainer(run, tokenizer, read_data(run, tokenizer))
    trainer.train()
    peaks = [peak_memory()] * run.arguments.world_size
    if len(peaks) > 1:
        dist.all_gather_object(peaks, peak_memory())
    if run.arguments.process_index == 0:
        print(json.dumps({"peak_bytes": max(peaks), "steps": trainer.state.global_step}), flush=True)


if __name__ == "__main__":
    with leaves_process_group():
        main()
