"""Log-probs of target tokens behind the head: ours against the fused heads of liger-kernel and cut-cross-entropy.

python -m benchmarks.head_kernels                                  # a small head, any device
python -m benchmarks.head_kernels --tokens 4096 --width 4096 --vocabulary 128256 --json head.json    # Llama-3-8B's

Each gives a log-prob for every token, and takes a gradient of its own for every token, as a preference loss needs it.
Packages that are not installed, and kernels on a CPU, are left out. Errors are against float32 from
the same states and weights; `repeats` tells whether two forward passes give the same bits, without which a policy and
its reference have no margin of 0 at step 0.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from align.longseq.logps import token_logps

Head = Callable[[Tensor, Tensor, Tensor], Tensor]  # states [S, H], weight [V, H], targets [S] → log-probs [S]


@dataclass(frozen=True)
class HeadCost:
    """What one way to compute a head's log-probs costs, and how far it is from float32.

    Attributes:
        name: of the way.
        seconds: of a forward and backward pass, the median of the rounds.
        peak_bytes: above what was there before, the gradients among it; None on a CPU.
        logps_error: the largest difference of a log-prob, in nats.
        states_error: ‖g − g′‖ / ‖g′‖ of the gradient of the states.
        weight_error: the same of the head's weight; None where it does not train.
        repeats: whether a second forward pass gives the same bits.
    """

    name: str
    seconds: float
    peak_bytes: int | None
    logps_error: float
    states_error: float
    weight_error: float | None
    repeats: bool


def heads(device: torch.device, *, slices: int) -> dict[str, Head]:
    """The ways that can run here, by name.

    Args:
        device: of the tensors.
        slices: ours computes the logits of a slice of the tokens at a time.
    """

    def ours(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return token_logps(lambda part: part @ weight.T, states, targets, slices=slices)

    found: dict[str, Head] = {"ours": ours}
    if device.type != "cuda":
        return found
    if find_spec("liger_kernel") is not None:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss(reduction="none", accum_dtype=torch.float32)
        found["liger"] = lambda states, weight, targets: -loss(weight, states, targets)
    if find_spec("cut_cross_entropy") is not None:
        from cut_cross_entropy import linear_cross_entropy

        for name, threshold in (("cut_cross_entropy", None), ("cut_cross_entropy, filtered", "auto")):
            found[name] = lambda states, weight, targets, threshold=threshold: (  # type: ignore[misc]
                -linear_cross_entropy(states, weight, targets, reduction="none", filter_eps=threshold)
            )
    return found


def compare_heads(
    states: Tensor, weight: Tensor, targets: Tensor, *, slices: int = 8, rounds: int = 3
) -> list[HeadCost]:
    """Every way that can run here, on the same tensors and the same gradient of each log-prob.

    Args:
        states: `[S, H]` hidden states, which get a gradient.
        weight: `[V, H]` of the head; it gets a gradient where it requires one.
        targets: `[S]` token ids.
        slices: see `heads`.
        rounds: timed ones, behind one that is not.
    """
    states = states.detach().requires_grad_()
    generator = torch.Generator(targets.device).manual_seed(0)
    upstream = torch.randn(len(targets), device=targets.device, generator=generator)
    exact = _step(
        heads(torch.device("cpu"), slices=slices)["ours"],
        states.detach().float().requires_grad_(),
        weight.detach().float().requires_grad_(weight.requires_grad),
        targets,
        upstream,
    )
    return [
        _measured(name, head, (states, weight, targets, upstream), exact, rounds)
        for name, head in heads(states.device, slices=slices).items()
    ]


def _step(head: Head, states: Tensor, weight: Tensor, targets: Tensor, upstream: Tensor) -> list[Tensor]:
    """Log-probs, and the gradients of what requires one."""
    logps = head(states, weight, targets)
    inputs = [one for one in (states, weight) if one.requires_grad]
    return [logps.detach(), *torch.autograd.grad(logps, inputs, upstream.to(logps.dtype))]


def _measured(
    name: str, head: Head, inputs: tuple[Tensor, Tensor, Tensor, Tensor], exact: list[Tensor], rounds: int
) -> HeadCost:
    device = inputs[0].device
    made = _step(head, *inputs)  # compiles what is compiled at first use
    repeats = torch.equal(head(*inputs[:3]).detach(), made[0])
    errors = [_relative(one, other) for one, other in zip(made[1:], exact[1:], strict=True)]
    far = float((made[0].double() - exact[0].double()).abs().max())
    del made
    seconds, peaks = [], []
    for _ in range(rounds):
        before = _reset(device)
        start = time.perf_counter()
        _step(head, *inputs)
        _wait(device)
        seconds.append(time.perf_counter() - start)
        if device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated(device) - before)
    return HeadCost(
        name=name,
        seconds=statistics.median(seconds),
        peak_bytes=max(peaks, default=None),
        logps_error=far,
        states_error=errors[0],
        weight_error=errors[1] if len(errors) > 1 else None,
        repeats=repeats,
    )


def _relative(value: Tensor, expected: Tensor) -> float:
    return float((value.float() - expected).norm() / expected.norm())


def _reset(device: torch.device) -> int:
    """Bytes in use on a GPU, whose peak is counted anew from here; 0 on a CPU."""
    _wait(device)
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def draw(
    tokens: int, width: int, vocabulary: int, *, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Random states, weight and targets, whose logits have a deviation of 2."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(tokens, width, generator=generator).to(device, dtype)
    weight = (torch.randn(vocabulary, width, generator=generator) * 2 / width**0.5).to(device, dtype)
    return states, weight, torch.randint(vocabulary, (tokens,), generator=generator).to(device)


def main() -> None:
    """Measures and prints every way; with `--json` writes them too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--train-head", action="store_true", help="the head's weight gets a gradient too")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    dtype = torch.bfloat16 if cuda else torch.float32
    states, weight, targets = draw(asked.tokens, asked.width, asked.vocabulary, device=device, dtype=dtype)
    costs = compare_heads(states, weight.requires_grad_(asked.train_head), targets, slices=asked.slices)
    for cost in costs:
        print(json.dumps(asdict(cost)))
    if asked.json is not None:
        card = torch.cuda.get_device_name() if cuda else "CPU"
        sizes = {"tokens": asked.tokens, "width": asked.width, "vocabulary": asked.vocabulary}
        content = {"device": card, **sizes, "slices": asked.slices, "ways": [asdict(cost) for cost in costs]}
        asked.json.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
