"""One process of a cell of scaling.py: a short step for the gradients, then the step that is measured.

python benchmarks/scaling_worker.py SETTINGS RANK FOLDER     # writes FOLDER/RANK.json
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from contestants import Setting, disturb, padded, shared_example
from rows import Row, cut_row, text_tokens
from torch import Tensor, nn

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.parallel import start_parallel
from align.models.loading import load_tokenizer
from align.models.structure import find_causal_lm
from align.runs.leaving import leaves_process_group
from align.training.peak_memory import peak_memory

SHORT = 64  # tokens of the prompt that comes first
Step = Callable[[Row], Tensor]


def main() -> None:
    """Joins the group, measures, writes."""
    cell, rank, folder = json.loads(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    if cell["degree"] > 1:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=cell["degree"]
        )
    setting = Setting("logo", cell["parameters"], cell["model"])
    model, step = library(setting) if cell["lever"] == "padded" else shared(setting, cell)
    if cell["layers"]:
        keep_layers(model, cell["layers"])
    tokens = text_tokens(load_tokenizer(cell["model"]))
    need = 2 * (cell["prompt"] + max(cell["answers"]))
    tokens *= -(-need // len(tokens))  # a prompt may be longer than the text
    run(model, step, cut_row(tokens, 0, prompt=SHORT, answers=cell["answers"]))
    found = run(model, step, cut_row(tokens, 1, prompt=cell["prompt"], answers=cell["answers"]))
    config = find_causal_lm(model).config
    layers = cell["layers"] or config.num_hidden_layers
    found["checkpoint_bytes_per_token"] = layers * config.hidden_size * 4
    (folder / f"{rank}.json").write_text(json.dumps(found))


def shared(setting: Setting, cell: dict[str, Any]) -> tuple[nn.Module, Step]:
    """This toolkit's forward with the cell's levers, sharded where the degree is above 1."""
    model = setting.policy(ATTENTION)
    disturb(model)
    levers = dict(cell["levers"])
    apply_checkpointing(model, levers.pop("mode"), **levers)
    parallel = start_parallel(cell["kind"], cell["degree"])
    method = setting.method()

    def step(row: Row) -> Tensor:
        batch = pack([shared_example(row)])
        logps = pair_logps(model, batch, parallel=parallel, chunk_size=cell["logits_chunk"])
        return method.loss(logps, None).loss.mean()

    return model.train(), step


def library(setting: Setting) -> tuple[nn.Module, Step]:
    """Padded rows through transformers' own forward, gradient checkpointing on."""
    contestant = padded(setting)
    trainer: Any = contestant.trainer
    model = contestant.policy.train()
    return model, lambda row: trainer.compute_loss(model, contestant.inputs(row))


def keep_layers(model: nn.Module, count: int) -> None:
    """Leaves the first `count` layers."""
    decoder = find_causal_lm(model).get_decoder()
    decoder.layers = decoder.layers[:count]
    decoder.config.num_hidden_layers = count


def run(model: nn.Module, step: Step, row: Row) -> dict[str, Any]:
    """Forward and backward; what it added to what was resident before, and its time. Gradients stay, as zeros."""
    forget_peak()
    before = psutil.Process().memory_info().rss
    processor, start = time.process_time(), time.perf_counter()
    loss = step(row)
    loss.backward()
    found = {
        "seconds": time.perf_counter() - start,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": peak_memory(),
        "loss": loss.item(),
    }
    found["activation_bytes"] = found["peak_bytes"] - before
    model.zero_grad(set_to_none=False)
    return found


def forget_peak() -> None:
    """Linux counts the peak anew from here on (proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    with leaves_process_group():
        main()
