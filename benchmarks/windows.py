"""What attention costs with a pattern, against full attention in one run: forward and backward of one layer, CPU.

python -m benchmarks.windows               # two models' heads, 8,192 tokens; writes results/windows.json
python -m benchmarks.windows --tokens 4096 --rounds 1

Gemma-3-1B has a window of 512 itself; SmolLM2 has none, and the narrow heads of many small models. The patterns, those
of the group `attention` among them, take turns, round after round, on the same queries, keys, values and gradient; the
ratio is of processor time within a round, the median over rounds. What autograd keeps is counted in bytes. A hybrid is
its layers: a third of them full, the others as measured.
"""

from __future__ import annotations

import argparse
import json
import operator
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from align.longseq.attention import attend, prepare
from align.longseq.shared_prefix import Layout, PackedPrompt
from align.patterns.by_head import ByHead, seen_pairs
from align.patterns.choices import EveryWindow, Shifted
from align.patterns.layers import LayerPatterns
from align.patterns.pattern import FULL, Pattern, Strided, Window

RESULTS = Path(__file__).parent / "results" / "windows.json"
HEADS = {"Gemma-3-1B": (4, 1, 256), "SmolLM2-135M": (9, 3, 64)}  # query heads, KV heads, width
ANSWER = 128  # tokens of each of the two answers, which the prompt is followed by
WINDOWS = (512, 1024, 4096)
# Of the group `attention`, by what stands on the command line.
CHOICES: dict[str, LayerPatterns] = {
    "attention=sink_window attention.window=512": EveryWindow(512, sinks=4),
    "attention=s2 attention.group=2048": Shifted(2048),
    "attention=s2 attention.group=2048 attention.sinks=4": Shifted(2048, sinks=4),
}
# The layers of a hybrid that are not full, by what stands there.
HYBRIDS: dict[str, Pattern] = {
    "attention=hybrid attention.others.size=512": Window(512, sinks=64),
    "attention=hybrid_blocks": Strided(256, stride=16),
    "attention=hybrid_blocks attention.others.stride=8": Strided(256, stride=8),
}


def main() -> None:
    """Measures every window against full attention and writes the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--tokens", type=int, default=8192, help="of the row, answers included")
    arguments.add_argument("--rounds", type=int, default=5)
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    heads = {name: compare(asked.tokens, asked.rounds, *sizes) for name, sizes in HEADS.items()}
    RESULTS.write_text(json.dumps({"tokens": asked.tokens, "threads": 1, "heads": heads}, indent=1) + "\n")
    for name, cells in heads.items():
        for cell in cells:
            print(
                f"{name:13} {cell['pattern']:66} {cell['seconds']:6.2f} s   {cell['ratio']:.3f} of full attention   "
                f"{cell['pairs']:.3f} of its pairs   kept {cell['kept_ratio']:.3f} of its bytes"
            )


def compare(tokens: int, rounds: int, heads: int, kv_heads: int, width: int) -> list[dict[str, Any]]:
    """Of each pattern the processor's seconds, and ratios to full attention's: time, pairs, bytes kept."""
    prompt = tokens - 2 * ANSWER
    answers = tuple((prompt + i * ANSWER, prompt + (i + 1) * ANSWER) for i in range(2))
    layout = Layout((PackedPrompt((0, prompt), answers),))
    generator = torch.Generator().manual_seed(0)
    # As a layer hands them on: the heads of a token lie side by side.
    drawn = [
        torch.randn(1, tokens, each, width, generator=generator).transpose(1, 2)
        for each in (heads, kv_heads, kv_heads, heads)
    ]
    states, gradient = [one.requires_grad_() for one in drawn[:3]], drawn[3]
    patterns = named_patterns(tokens, heads, heads // kv_heads)
    seconds: dict[str, list[float]] = {name: [] for name in patterns}
    kept: dict[str, int] = {}
    for _ in range(rounds):
        for name, pattern in patterns.items():
            took, kept[name] = step(layout, states, gradient, pattern)
            seconds[name].append(took)
    whole = str(FULL)
    return [
        {
            "pattern": name,
            "seconds": statistics.median(seconds[name]),
            "ratio": _in_layers(
                name, statistics.median(map(operator.truediv, seconds[name], seconds[whole]))
            ),
            "pairs": _in_layers(name, pairs(pattern, prompt) / pairs(FULL, prompt)),
            "kept_ratio": kept[name] / kept[whole],
        }
        for name, pattern in patterns.items()
    ]


def named_patterns(tokens: int, heads: int, queries_per_kv: int) -> dict[str, Pattern | ByHead]:
    """Full attention, windows, and what the group `attention` gives a layer; of a hybrid a layer that is not full."""
    found: dict[str, Pattern | ByHead] = {
        str(one): one for one in (FULL, *(Window(size) for size in WINDOWS if size < tokens))
    }
    for name, choice in CHOICES.items():
        pattern = choice.at(0, layers=30, heads=heads)
        found[name] = (
            replace(pattern, queries_per_kv=queries_per_kv) if isinstance(pattern, ByHead) else pattern
        )
    return found | HYBRIDS


def _in_layers(name: str, ratio: float) -> float:
    """Of a hybrid the mean over its layers, a third of which are full; of all others the ratio itself."""
    return (1 + 2 * ratio) / 3 if name in HYBRIDS else ratio


def pairs(pattern: Pattern | ByHead, prompt: int) -> float:
    """Pairs of a query and a key that it sees."""
    return seen_pairs(pattern, (0, prompt)) + 2 * seen_pairs(pattern, (prompt, prompt + ANSWER))


def step(
    layout: Layout, states: list[Tensor], gradient: Tensor, pattern: Pattern | ByHead
) -> tuple[float, int]:
    """Processor seconds of a forward and backward pass, and bytes that were kept in between."""
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    way = partial(attend, layout=prepare(layout), kernel="cpu", pattern=pattern)
    started = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = way(*states)
    torch.autograd.grad(output, states, gradient)
    return time.process_time() - started, kept


if __name__ == "__main__":
    main()
