"""Stage `step`: training is exact: against padded rows, with every lever, before the first step, killed and resumed.

Runs of `align train` and the tests marked `gpu` go on in processes of their own while this one compares gradients.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from align.longseq import ATTENTION, pack, pair_logps
from align.longseq.checkpointing import apply_checkpointing
from align.longseq.plain_rows import plain_pair_logps
from align.longseq.small_model import draw_wide
from align.models.kernels import fuse
from benchmarks.gpu.contestants import Task, loaded, shared_trainer
from benchmarks.gpu.context import Context
from benchmarks.gpu.device import Device
from benchmarks.gpu.exactness import error_of
from benchmarks.gpu.results import ROOT
from benchmarks.gpu.shapes import example
from benchmarks.gpu.trains import Trains
from losses.types import PairLogps

FP32 = 5e-5  # bound on ‖g − g′‖ / ‖g′‖ of the worst parameter, and on the loss's relative error
FUSED = 1e-4  # the same with other kernels, which compute exp and rsqrt in another way
BF16 = 1.5  # the shared prefix's distance from float32 over padded rows' own, at most
TILES = 0.05  # bound in bf16 where products have other shapes; what only moves tensors is held to 0
WINDOW = 64
# The library's own attention for padded rows, and what a configuration adds to the small one.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("sdpa", {}),
    "qwen2": ("sdpa", {}),
    "qwen3": ("sdpa", {}),
    "gemma3_text": (
        "sdpa",
        {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "gpt_oss": (
        "eager",
        {
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "num_local_experts": 4,
            "num_experts_per_tok": 4,  # all: between two that are nearly equal bf16 would choose at random
        },
    ),
}


def run(context: Context) -> None:
    """See the module."""
    torch.backends.cuda.matmul.allow_tf32 = False
    context.keep("bounds", {"fp32": FP32, "bf16, over padded rows": BF16, "tiles in bf16": TILES})
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        trains = Trains(Path(folder), context)
        stack.callback(trains.close)  # whatever has had no time must not run beside the next stage
        tests = None if context.scale == "miniature" else start_tests()
        if tests is not None:
            stack.callback(tests.kill)
        context.cells(
            {
                **{
                    f"{kind}, loss and gradients": partial(against_padded, context, kind)
                    for kind in ARCHITECTURES
                },
                **{f"levers, {name}": partial(levers, context, dtype) for name, dtype in DTYPES.items()},
                "fused kernels": partial(fused_kernels, context),
                "synchronisations": partial(synchronisations, context),
                "margins before the first step": trains.margins,
                "killed and resumed": trains.resumed,
                "tests marked gpu": partial(end_tests, context, tests),
            }
        )


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def small(kind: str, attention: str, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """Two layers of an architecture with heads of 64, weights drawn wide and rounded to bf16 whatever their type."""
    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
    }
    config = CONFIG_MAPPING[kind](**(sizes | ARCHITECTURES[kind][1]))
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    )
    draw_wide(model)
    return model.to(torch.bfloat16).to(device, dtype).train()


def examples(context: Context) -> list[Any]:
    """Two prompts with three answers each."""
    lengths = context.of_scale(
        ((300, (60, 41, 17)), (130, (70, 9, 33))), ((90, (20, 11, 7)), (30, (16, 5, 9)))
    )
    return [
        example(prompt, answers, vocabulary=512, seed=seed) for seed, (prompt, answers) in enumerate(lengths)
    ]


def shared_step(model: nn.Module, rows: list[Any], device: torch.device) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of the shared prefix."""
    return _step(model, pair_logps(model, pack(rows).to(device)))


def _step(model: nn.Module, logps: PairLogps) -> tuple[Tensor, dict[str, Tensor]]:
    """A loss that weighs answers unlike each other, so that swapped ones show, and its gradients by name."""
    weights = torch.tensor([0.7, 0.3], device=logps.rejected.device)
    loss = ((logps.rejected * weights).sum(1) - logps.chosen).mean() / 50
    named = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return loss.detach(), {
        name: grad for name, grad in zip(named, grads, strict=True) if grad is not None and grad.norm() != 0
    }


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative error of a parameter's gradient, and whose it is."""
    if found.keys() != expected.keys():
        raise ValueError(f"gradients of one way alone: {sorted(found.keys() ^ expected.keys())}")
    return max((error_of(found[name], expected[name]), name) for name in expected)


def against_padded(context: Context, kind: str) -> dict[str, Any]:
    """fp32: the shared prefix against padded rows; bf16: both against fp32, of the same weights."""
    device, rows = context.device.torch, examples(context)
    own = ARCHITECTURES[kind][0]

    def both(dtype: torch.dtype) -> tuple[tuple[Tensor, dict[str, Tensor]], ...]:
        plain = small(kind, own, dtype, device)
        other = small(kind, ATTENTION, dtype, device)
        return _step(plain, plain_pair_logps(plain, rows)), shared_step(other, rows, device)

    (loss, exact), (found_loss, found) = both(torch.float32)
    error, name = worst(found, exact)
    of_loss = error_of(found_loss, loss)
    (_, low_plain), (_, low) = both(torch.bfloat16)
    padded_error, shared_error = worst(low_plain, exact)[0], worst(low, exact)[0]
    ratio = shared_error / padded_error
    return {
        "fp32": {"loss": of_loss, "gradient": error, "parameter": name},
        "bf16": {"gradient": shared_error, "padded rows": padded_error, "ratio": ratio},
        "passed": max(error, of_loss) <= FP32 and ratio <= BF16,
    }


def fused_kernels(context: Context) -> dict[str, Any]:
    """`model.kernels=liger`: fp32 against none; in bf16 the distance from fp32 over that without."""
    if not context.device.cuda:
        return {"skipped": "needs a GPU"}
    device, rows = context.device.torch, examples(context)

    def gradients(dtype: torch.dtype, way: Callable[[Any], object] = lambda model: None) -> dict[str, Tensor]:
        model = small("llama", ATTENTION, dtype, device)
        way(model)
        return shared_step(model, rows, device)[1]

    exact = gradients(torch.float32)
    error = worst(gradients(torch.float32, fuse), exact)[0]
    plain, fused = (worst(gradients(torch.bfloat16, *way), exact)[0] for way in ((), (fuse,)))
    return {"fp32": {"gradient": error}, "bf16": {"ratio": fused / plain}} | {
        "passed": error <= FUSED and fused / plain <= BF16
    }


def levers(context: Context, dtype: torch.dtype) -> dict[str, Any]:
    """Gradients with each memory lever against none: the worst parameter's relative error."""
    device, rows = context.device.torch, examples(context)
    away = "host" if context.device.cuda else "disk"
    tried: dict[str, dict[str, Any]] = {
        "full": {"mode": "full"},
        "keep_attention": {"mode": "keep_attention"},
        f"offload={away}": {"mode": "full", "offload": away},
        "mlp_chunk": {"mode": "full", "mlp_chunk": 50},
        f"all, offload={away}": {"mode": "keep_attention", "mlp_chunk": 50, "offload": away},
    }
    _, expected = shared_step(small("llama", ATTENTION, dtype, device), rows, device)
    errors = {}
    for name, settings in tried.items():
        model = small("llama", ATTENTION, dtype, device)
        given = dict(settings)
        apply_checkpointing(model, given.pop("mode"), **given)
        errors[name] = worst(shared_step(model, rows, device)[1], expected)[0]
    bound = FP32 if dtype == torch.float32 else TILES
    return {"errors": errors, "passed": max(errors.values()) <= bound}


def synchronisations(context: Context) -> dict[str, Any]:
    """How often a micro-batch makes the host wait for the GPU, and from which lines."""
    if not context.device.cuda:
        return {"skipped": "needs a GPU"}
    shape = context.of_scale("Qwen2.5-0.5B", "tiny")
    task = Task(shape, "lora", "dpo", 2048, (256, 256), context.device.torch)
    trainer = shared_trainer(task, train_dataset=[task.example()])
    counts: dict[str, Counter[str]] = {}
    for name in ("first", "later"):
        inputs = loaded(trainer)
        counts[name] = waits(
            context.device, lambda inputs=inputs: trainer.training_step(trainer.model, inputs)
        )
    later = counts["later"]
    return {
        "a micro-batch": later.total(),
        "the first one": counts["first"].total(),
        "lines": dict(later.most_common(20)),
    }


def waits(device: Device, run_once: Callable[[], object]) -> Counter[str]:
    """Lines of code from which the host waits for the GPU, by torch's own count."""
    device.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            run_once()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Counter(
        f"{'/'.join(Path(one.filename).parts[-3:])}:{one.lineno}"
        for one in caught
        if "synchroniz" in str(one.message)
    )


def start_tests() -> subprocess.Popen[str]:
    """pytest on the files that have tests marked `gpu`."""
    files = [
        str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()
    ]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        *files,
    ]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end_tests(context: Context, tests: subprocess.Popen[str] | None) -> dict[str, Any]:
    """How many passed, failed and were skipped, and the report's end where one failed."""
    if tests is None:
        return {"skipped": "the tests marked gpu need a GPU"}
    try:
        said, _ = tests.communicate(timeout=max(1.0, context.left()))
    except subprocess.TimeoutExpired:
        return {"error": "no time left"}
    counts = {
        word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|skipped|error)", said[-400:])
    }
    return {"counts": counts, "passed": tests.returncode == 0} | (
        {"said": said[-1500:]} if tests.returncode else {}
    )
