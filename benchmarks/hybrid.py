"""A training step of a hybrid of state and attention layers: the shared prefix against padded rows, CPU.

python -m benchmarks.hybrid            # Qwen3-Next at an eighth of its width; writes results/hybrid.json

Three layers with a gated delta rule and one with attention, random weights, fp32, checkpointed layers on both sides; a
prompt of 4,096 tokens with answers of 128, 128 and 128. Each way is a process of its own and takes the same steps one
after the other; seconds are the processor's, memory is the process's largest resident set, above that of the model.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from align.data.examples import TokenizedExample
    from losses.types import PairLogps

RESULTS = Path(__file__).parent / "results" / "hybrid.json"
WAYS = ("shared prefix", "padded rows")
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "num_experts": 0,
    "vocab_size": 8192,
    "max_position_embeddings": 8192,
}


def main() -> None:
    """Both ways, in turn; or with `--way` one of them, which prints what it took."""
    compare("benchmarks.hybrid", WAYS, run, description=__doc__, sizes=(4096, 128), results=RESULTS)


def compare(
    module: str,
    ways: tuple[str, str],
    run: Callable[..., dict[str, Any]],
    *,
    description: str | None,
    sizes: tuple[int, int],
    results: Path,
) -> None:
    """The command of a benchmark of two ways to take a step: the first one's speed and memory over the second one's.

    Args:
        module: of the benchmark, which is called again for each way.
        ways: ours, and the other.
        run: takes steps in one of them, with tokens of the prompt, tokens of an answer, and rounds.
        description: for `--help`.
        sizes: tokens of the prompt and of each of three answers, where no others are asked for.
        results: the file that is written.
    """
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--prompt", type=int, default=sizes[0], help="tokens")
    arguments.add_argument("--answer", type=int, default=sizes[1], help="tokens of each of three answers")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--way", choices=ways)
    asked = arguments.parse_args()
    if asked.way:
        print(json.dumps(run(asked.way, asked.prompt, asked.answer, asked.rounds)))
        return
    found = {way: in_a_process(module, way, asked) for way in ways}
    ours, theirs = (found[way] for way in ways)
    found["ratios"] = {
        "speed": statistics.median(theirs["seconds"]) / statistics.median(ours["seconds"]),
        "memory": ours["bytes"] / theirs["bytes"],
        "loss": abs(ours["loss"] - theirs["loss"]) / abs(theirs["loss"]),
    }
    results.write_text(json.dumps({"prompt": asked.prompt, "answer": asked.answer, **found}, indent=1) + "\n")
    print(
        f"{ways[0]}: {found['ratios']['speed']:.2f} × as fast as {ways[1]} in {found['ratios']['memory']:.2f} × the "
        f"memory; losses differ by {found['ratios']['loss']:.0e}"
    )


def in_a_process(module: str, way: str, asked: argparse.Namespace) -> dict[str, Any]:
    """What `python -m MODULE --way WAY` prints last."""
    command = [sys.executable, "-m", module, "--way", way]
    command += [f"--{name}={getattr(asked, name)}" for name in ("prompt", "answer", "rounds")]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def run(way: str, prompt: int, answer: int, rounds: int) -> dict[str, Any]:
    """Seconds of each step after one to warm up, bytes above the model, and the loss."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3NextConfig

    from align.longseq import ATTENTION, pack, pair_logps
    from align.longseq.checkpointing import apply_checkpointing
    from align.longseq.plain_rows import plain_pair_logps

    warnings.filterwarnings("ignore", category=FutureWarning)  # of transformers, about its own names
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen3NextConfig(**SIZES), dtype=torch.float32).train()
    example = random_example(prompt, answer, vocabulary=SIZES["vocab_size"])
    if way == "shared prefix":
        model.set_attn_implementation(ATTENTION)
        apply_checkpointing(model, "keep_attention")
        batch = pack([example])
    else:
        model.gradient_checkpointing_enable()

    def forward() -> PairLogps:
        return pair_logps(model, batch) if way == "shared prefix" else plain_pair_logps(model, [example])

    return steps(model, forward, rounds)


def random_example(prompt: int, answer: int, *, vocabulary: int) -> TokenizedExample:
    """A prompt with three answers of as many tokens, always the same."""
    import numpy as np

    from align.data.examples import Answer, TokenizedExample

    random = np.random.default_rng(0)
    ids = [random.integers(0, vocabulary, size) for size in (prompt, answer, answer, answer)]
    answers = tuple(Answer(each, np.ones(answer, dtype=bool)) for each in ids[1:])
    return TokenizedExample("random:1", ids[0], np.arange(prompt), answers)


def steps(model: Any, forward: Callable[[], PairLogps], rounds: int) -> dict[str, Any]:
    """Seconds of each step after one to warm up, bytes above the model, and the loss, which is LOGO's."""
    from losses import logo_loss

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(1 + rounds):
        model.zero_grad()
        started = time.process_time()
        loss = logo_loss(forward(), beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()
        loss.backward()
        seconds.append(time.process_time() - started)
    above = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"seconds": seconds[1:], "bytes": above, "loss": loss.item()}


if __name__ == "__main__":
    main()
