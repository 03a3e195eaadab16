"""A training step of a model whose prompt only a mask shares: packed rows by a mask against a row for each answer, CPU.

python -m benchmarks.masked            # StableLM, four layers of 512; writes results/masked.json

Random weights, fp32, checkpointed layers on both sides; a prompt of 2,048 tokens with answers of 256, 256 and 256. Each
way is a process of its own; seconds are the processor's, memory as in hybrid.py.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from benchmarks.hybrid import compare, random_example, steps

RESULTS = Path(__file__).parent / "results" / "masked.json"
WAYS = ("masked", "library")  # `model.attention`
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 8192,
    "max_position_embeddings": 4096,
}


def main() -> None:
    """Both ways, in turn; or with `--way` one of them, which prints what it took."""
    compare("benchmarks.masked", WAYS, run, description=__doc__, sizes=(2048, 256), results=RESULTS)


def run(way: str, prompt: int, answer: int, rounds: int) -> dict[str, Any]:
    """Seconds of each step after one to warm up, bytes above the model, and the loss."""
    import torch
    from transformers import AutoModelForCausalLM, StableLmConfig

    from align.longseq import pack, pair_logps
    from align.longseq.checkpointing import apply_checkpointing
    from align.models.structure import set_reading

    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about its own names
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(StableLmConfig(**SIZES), dtype=torch.float32).train()
    set_reading(model, way)
    apply_checkpointing(model, "full")
    batch = pack([random_example(prompt, answer, vocabulary=SIZES["vocab_size"])])
    return steps(model, lambda: pair_logps(model, batch), rounds)


if __name__ == "__main__":
    main()
