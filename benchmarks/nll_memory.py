"""Peak memory of a LongPO step with and without its NLL over the whole chosen row, on the embedded model.

    python benchmarks/nll_memory.py                  # 8192 tokens
    python benchmarks/nll_memory.py --tokens 1024    # a minute, to see that it runs

The step is `method=longpo` in `PreferenceTrainer`, forward and backward, all parameters, fp32, default checkpointing
and `memory.logits_chunk`. Without the NLL the same step has `nll_weight=0` and scores the answers alone. The log-probs
of the reference are given, as a cache gives them. Each step is a process of its own, whose largest resident set counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contestants import arguments
from omegaconf import OmegaConf
from rows import cut_row, text_tokens
from torch import nn

import hydra_conf
from align.core.files import write_json
from align.data.examples import Answer, TokenizedExample
from align.longseq import ATTENTION, SharedPrefixBatch, pack
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.settings import MemorySettings
from align.models.loading import load_causal_lm, load_tokenizer
from align.models.settings import EMBEDDED, ModelSettings
from align.reference.sources import ReferenceUsage
from align.training.methods import load_method
from align.training.peak_memory import peak_memory
from align.training.trainer import PreferenceTrainer
from losses import PairLogps

RESULTS = Path(__file__).parent / "results" / "nll_memory.json"
ANSWER = 128  # tokens of either answer
LIMIT = 1.1  # with the NLL over without


class Given:
    """A reference whose log-probs are known."""

    usage = ReferenceUsage()

    def __call__(self, policy: nn.Module, batch: SharedPrefixBatch) -> PairLogps:
        """−1 nat a token for every answer."""
        lengths = torch.cat([row.lengths for row in batch.rows])
        return PairLogps(-lengths[:, 0].float(), -lengths[:, 1:].float(), lengths[:, 0], lengths[:, 1:])


def main() -> None:
    """Runs both steps and writes their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=8192, help="prompt and both answers together")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--step", choices=("with", "without"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.tokens, nll=options.step == "with")))
        return
    found = {name: _in_a_process(name, options) for name in ("without", "with")}
    ratio = found["with"]["peak_gb"] / found["without"]["peak_gb"]
    content = {"tokens": options.tokens, "threads": options.threads, "peak_ratio": ratio, **found}
    options.output.parent.mkdir(exist_ok=True)
    write_json(options.output, content)
    print(json.dumps(content, indent=1))
    if ratio > LIMIT:
        sys.exit(f"with the NLL the peak is {ratio:.2f} × that without, more than {LIMIT}")


def _in_a_process(name: str, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--step", name, "--tokens", str(options.tokens)]
    # glibc would keep freed blocks, and the peak would read about twice the true one.
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=os.environ | environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def step(tokens: int, *, nll: bool) -> dict[str, float]:
    """One step on a row of `tokens`; its peak, what was resident before it, loss and processor seconds."""
    row = cut_row(
        text_tokens(load_tokenizer(EMBEDDED)), 0, prompt=tokens - 2 * ANSWER, answers=[ANSWER, ANSWER]
    )
    example = TokenizedExample(
        source="benchmark",
        prompt_ids=np.array(row.prompt),
        position_ids=np.arange(len(row.prompt)),
        answers=tuple(Answer(np.array(ids), np.ones(len(ids), dtype=bool)) for ids in row.answers),
    )
    config: Any = OmegaConf.load(str(Path(hydra_conf.__file__).parent / "method" / "longpo.yaml"))
    if not nll:
        config.loss.nll_weight, config.needs.nll_scope = 0.0, "none"
    policy = load_causal_lm(ModelSettings(path=EMBEDDED, dtype="float32"), attention=ATTENTION)
    apply_checkpointing(policy, MemorySettings().checkpointing)
    trainer = PreferenceTrainer(
        policy,
        arguments(),
        method=load_method(config),
        reference=Given(),
        logits_chunk=MemorySettings().logits_chunk,
        data_collator=lambda examples: {"batch": pack(examples)},
    )
    batch = pack([example])
    inputs = {"batch": batch, "short": batch, "owner": torch.zeros(1, dtype=torch.long)}
    loaded, start = peak_memory(), time.process_time()
    loss = trainer.training_step(policy, {**inputs, "real": torch.ones(1, dtype=torch.bool)})
    return {
        "peak_gb": peak_memory() / 1e9,
        "before_gb": loaded / 1e9,
        "loss": loss.item(),
        "processor_seconds": time.process_time() - start,
    }


if __name__ == "__main__":
    main()
