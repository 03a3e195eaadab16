"""What one row keeps for its backward pass: plain, by the memory levers, and the least that LeMo would keep of it; CPU.

python -m benchmarks.lemo               # 4,096 tokens; writes results/lemo.json
python -m benchmarks.lemo --tokens 1024

A random model with Llama-2-7B's layers and proportions at a thirty-second of its width, LoRA of rank 8, fp32. Kept is
what the forward pass has allocated and not freed when it ends, counted by torch's profiler; the peak is that of the
whole step. LeMo (arXiv 2501.09767) is not built here. Its bound is counted from what the plain forward keeps of each
layer, with its released code's numbers: the first 15 layers and the last one keep attention for all tokens, the others
for a share of them, MLPs for a fifth of those that the layer has; predictors, scores, indices and the head are counted
as nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from transformers import AutoModelForCausalLM, LlamaConfig

from align.adapters.adapter import add_adapter
from align.adapters.lora import Lora
from align.core.files import write_json
from align.data.examples import Answer, TokenizedExample
from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.models.structure import decoder_layers, find_causal_lm

RESULTS = Path(__file__).parent / "results" / "lemo.json"
WIDTH, LAYERS = 128, 32  # Llama-2-7B: 4096 and 32
CHUNK = 512  # tokens of a tile, and of the logits at once
# By what stands on the command line.
LEVERS: dict[str, dict[str, Any]] = {
    "memory.checkpointing=none": {"mode": "none"},
    "memory.checkpointing=keep_attention": {"mode": "keep_attention"},
    "memory.checkpointing=full": {"mode": "full"},
    "memory.checkpointing=full memory.mlp_chunk=512": {"mode": "full", "mlp_chunk": CHUNK},
    "memory.checkpointing=full memory.mlp_chunk=512 memory.offload=disk": {
        "mode": "full",
        "mlp_chunk": CHUNK,
        "offload": "disk",
    },
}
# LeMo's released code: layers that keep all tokens in a model of 32, and the share of an MLP's tokens that is saved.
ALL_TOKENS = (*range(15), 31)
OF_MLP = 0.2
SHARES = (0.5, 0.2)  # of tokens that the other layers keep
BACKWARD = "the backward pass"  # its name in the profile
Forward = Callable[[nn.Module, Tensor], Tensor]


def main() -> None:
    """Measures every way on the same row, and writes them."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--tokens", type=int, default=4096, help="of the row")
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    found = measure_all(asked.tokens, layers=LAYERS, width=WIDTH)
    write_json(RESULTS, found)
    print(json.dumps(found, indent=1))


def measure_all(tokens: int, *, layers: int, width: int) -> dict[str, Any]:
    """Bytes that each way keeps and has at its peak, its loss, and LeMo's least for each share of tokens."""
    ids = torch.randint(8, vocabulary(width), (1, tokens), generator=torch.Generator().manual_seed(0))
    ways = {"plain": measure(model_of(layers, width), ids, plain)}
    for name, levers in LEVERS.items():
        model = model_of(layers, width)
        model.set_attn_implementation(ATTENTION)
        apply_checkpointing(model, **levers)
        ways[name] = measure(model, ids, shared)
    attention, mlp = kept_of_a_layer(model_of(layers, width), ids)
    return {
        "tokens": tokens,
        "layers": layers,
        "width": width,
        "ways": ways,
        "of_a_layer": {"attention": attention, "mlp": mlp},
        "lemo_at_least": {str(share): at_least(attention, mlp, share, layers=layers) for share in SHARES},
    }


def vocabulary(width: int) -> int:
    """As many tokens over the width as Llama-2-7B has: 32,000 / 4,096."""
    return width * 125 // 16


def model_of(layers: int, width: int) -> Any:
    """Llama-2-7B's proportions with LoRA on q, k, v and o; the same weights every time."""
    config = LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=vocabulary(width),
        max_position_embeddings=4096,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return add_adapter(
            AutoModelForCausalLM.from_config(config, attn_implementation="sdpa"), Lora(r=8)
        ).train()


def plain(model: nn.Module, ids: Tensor) -> Tensor:
    """The library's own loss over all logits."""
    loss: Tensor = model(input_ids=ids, labels=ids, use_cache=False).loss
    return loss


def shared(model: nn.Module, ids: Tensor) -> Tensor:
    """The same loss by this toolkit's forward: a document is its first token and what follows."""
    tokens = ids[0].numpy()
    answer = Answer(tokens[1:], np.ones(len(tokens) - 1, dtype=bool))
    batch = pack([TokenizedExample("a document", tokens[:1], np.arange(1), (answer,))])
    return -pair_logps(model, batch, chunk_size=CHUNK).chosen.sum() / (len(tokens) - 1)


def measure(model: nn.Module, ids: Tensor, forward: Forward) -> dict[str, float]:
    """Bytes that live when the forward pass ends, the most that live in a step, and the loss."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        loss = forward(model, ids)
        with record_function(BACKWARD):
            loss.backward()
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    names = [event.name() for event in events]
    changes = [
        event.nbytes() if event.name() == "[memory]" else 0 for event in events
    ]  # negative where freed
    live = np.cumsum(changes)
    return {"kept": int(live[names.index(BACKWARD)]), "peak": int(live.max()), "loss": loss.item()}


def kept_of_a_layer(model: nn.Module, ids: Tensor) -> tuple[float, float]:
    """Bytes that a layer of the plain forward keeps, in attention with its norm and in the MLP with its own; the mean.

    Every storage counts once, where it is saved first, and parameters do not.
    """
    at = ["outside"]
    kept: dict[str, int] = {"outside": 0, "attention": 0, "mlp": 0}
    seen = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    alive: list[Tensor] = []

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            alive.append(tensor)  # so that its place is not given to another
            kept[at[-1]] += storage.nbytes()
        return tensor

    layers = list(decoder_layers(find_causal_lm(model)))
    with watched(layers, at), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        plain(model, ids)
    return kept["attention"] / len(layers), kept["mlp"] / len(layers)


@contextmanager
def watched(layers: list[Any], at: list[str]) -> Iterator[None]:
    """Within it `at` ends with the part of a layer that is computed."""
    parts = {"attention": ("input_layernorm", "self_attn"), "mlp": ("post_attention_layernorm", "mlp")}
    handles = []
    for layer in layers:
        for name, modules in parts.items():
            for module in modules:
                part = getattr(layer, module)
                handles.append(part.register_forward_pre_hook(lambda *_, name=name: at.append(name)))
                handles.append(part.register_forward_hook(lambda *_: void(at.pop())))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def void(_: object) -> None:
    """A hook that returns something would replace the module's output."""


def at_least(attention: float, mlp: float, share: float, *, layers: int) -> int:
    """Bytes that LeMo keeps at least, of layers that keep so many each with all tokens.

    With 32 layers and a half: 16 with all tokens and 16 with half of them, attention 24 times and MLP 0.2 · 24 times.

    Args:
        attention, mlp: bytes of a layer with all tokens.
        share: of the tokens that is left in the layers that leave some out.
        layers: of the model; those that keep all tokens are as many of them as the code has of 32.
    """
    whole = len(ALL_TOKENS) / 32
    return round(layers * (whole + (1 - whole) * share) * (attention + OF_MLP * mlp))


if __name__ == "__main__":
    main()
