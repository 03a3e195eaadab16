"""One step computed in several ways: padded rows, the shared prefix, shards in a wrapper; how far apart they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig

from align.core.errors import UserError
from align.core.telling import tell
from align.data.examples import TokenizedExample, with_soft_prompt
from align.distributed.wrappers import actual_wrapper
from align.longseq import pack, pair_logps
from align.longseq.attention import is_ours
from align.longseq.parallel import SequenceParallel, choose_exchange, start_parallel
from align.longseq.plain_rows import plain_pair_logps, relative_error
from align.longseq.settings import MemorySettings, ParallelSettings
from align.models.settings import LIBRARY, MASKED
from align.models.soft_prompt import soft_ids
from align.models.structure import find_causal_lm, reading_of
from align.models.text_part import of_layers
from align.verification.small_copy import random_examples
from losses import logo_loss
from losses.types import PairLogps

PROMPTS_PER_GROUP = 2
LEARNING_RATE = 0.1  # wrappers want an optimizer; no step is taken


@dataclass(frozen=True)
class Outcome:
    """Loss and gradients of one way to compute the same step, on one process or many."""

    way: str
    where: str
    loss: float
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class Difference:
    """How far one way is from padded rows in fp32.

    Attributes:
        way: what was computed: `shared prefix`, `sharded, ulysses × 2`.
        where: `one process`, `2 processes, DDP`.
        loss: relative error of the loss.
        gradient: the largest relative error of a parameter's gradient, ‖g − g′‖ / ‖g′‖.
        parameter: whose gradient that is.
    """

    way: str
    where: str
    loss: float
    gradient: float
    parameter: str


def form_groups(
    settings: ParallelSettings, model: PreTrainedConfig, config: DictConfig, accelerator: Accelerator
) -> SequenceParallel | None:
    """The sequence-parallel groups of the launched processes; `auto` says what it takes and why."""
    kind = settings.kind
    if kind == "auto" and settings.degree > 1:
        kind, reason = choose_exchange(
            heads=min(of_layers(model, "num_attention_heads")),
            kv_heads=min(of_layers(model, "num_key_value_heads") or of_layers(model, "num_attention_heads")),
            degree=settings.degree,
            length=config.prompt_tokens + 2 * config.answer_tokens,
        )
        if accelerator.is_main_process:
            tell(reason)
    return start_parallel("none" if settings.degree == 1 else kind, settings.degree)


def run_all(
    config: DictConfig,
    memory: MemorySettings,
    models: tuple[Any, Any, Any],
    accelerator: Accelerator,
    parallel: SequenceParallel | None,
) -> list[Outcome]:
    """Every way to compute the step: two in this process alone and, where several were launched, one in all."""
    degree = 1 if parallel is None else parallel.degree
    groups = accelerator.num_processes // degree
    plain, shared, launched = models
    examples = examples_of(config, plain, groups=groups)

    def forward(
        model: nn.Module, share: slice = slice(None), over: SequenceParallel | None = None
    ) -> PairLogps:
        batch = pack(examples[share]).to(accelerator.device)
        return pair_logps(model, batch, parallel=over, chunk_size=memory.logits_chunk)

    outcomes = [
        alone("padded rows", plain.to(accelerator.device), lambda model: plain_pair_logps(model, examples)),
        alone(way_of(shared), shared.to(accelerator.device), forward),
    ]
    if accelerator.num_processes > 1:
        way = way_of(launched) if parallel is None else f"sharded, {parallel.kind} × {degree}"
        share = slice(accelerator.process_index // degree, None, groups)
        outcomes.append(in_wrapper(way, launched, accelerator, lambda model: forward(model, share, parallel)))
    return outcomes


def examples_of(config: DictConfig, model: nn.Module, *, groups: int) -> list[TokenizedExample]:
    """The rows of every group of processes that shares some, behind the model's soft prompt where it has one."""
    examples = random_examples(
        PROMPTS_PER_GROUP * groups,
        prompt_tokens=config.prompt_tokens,
        answer_tokens=config.answer_tokens,
        seed=config.seed,
    )
    return [with_soft_prompt(example, soft_ids(model)) for example in examples]


def rounding(model: nn.Module, examples: list[TokenizedExample], expected: Outcome) -> float:
    """How far padded rows are from themselves once the last bit of every weight has changed: relative, as differences.

    Rounding moves gradients by about half of that, and in other places for each way to compute them: where rules run in
    chunks (Qwen3-Next's linear attention), by 1e-5 and more.

    Args:
        model: the one that `expected` came from; its weights are changed, in place.
        examples: the rows.
        expected: their step before.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            signs = torch.randint(0, 2, weight.shape, generator=generator).to(weight.device) * 2 - 1
            weight.mul_(1 + signs * torch.finfo(weight.dtype).eps)
    (moved,) = compare([expected, alone("padded rows", model, lambda one: plain_pair_logps(one, examples))])
    return max(moved.loss, moved.gradient)


def tolerated(
    differences: list[Difference],
    least: float,
    model: nn.Module,
    examples: list[TokenizedExample],
    expected: Outcome,
) -> tuple[float, str]:
    """The largest error that counts as exact, and in words where it comes from if it is not `least`.

    Args:
        differences: of all ways.
        least: what always counts as exact.
        model, examples, expected: as `rounding`'s, which is looked at where some way differs by more than that.
    """
    if all(max(each.loss, each.gradient) <= least for each in differences):
        return least, ""
    moved = 2 * rounding(model, examples, expected)
    return (
        (moved, ": twice what the last bit of the weights changes on padded rows")
        if moved > least
        else (least, "")
    )


def way_of(model: nn.Module) -> str:
    """How the model reads a batch, for the table."""
    lm = find_causal_lm(model)
    return "shared prefix" if is_ours(lm) else _OF_LIBRARY[reading_of(lm)]


_OF_LIBRARY = {LIBRARY: "rows of their own", MASKED: "packed rows by a mask"}


def step_loss(logps: PairLogps) -> Tensor:
    """LOGO's, whose gradient reaches the chosen and every rejected answer; the mean over the prompts."""
    return logo_loss(logps, beta=2.5, gamma=0.25, sft_weight=0.1).loss.mean()


def alone(way: str, model: nn.Module, forward: Callable[[nn.Module], PairLogps]) -> Outcome:
    """A step of this process alone."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    loss = step_loss(forward(model))
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    return Outcome(way, "one process", loss.item(), gradients)


def in_wrapper(
    way: str, model: nn.Module, accelerator: Accelerator, forward: Callable[[nn.Module], PairLogps]
) -> Outcome:
    """A step of all launched processes in the wrapper that the launch asks for."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    wrapped: Any = accelerator.prepare(model, torch.optim.SGD(weights, lr=LEARNING_RATE))[0]
    wrapper = actual_wrapper(wrapped)
    check_wrapper_asked_for(wrapper)
    if isinstance(wrapped, FullyShardedDataParallel):
        raise UserError(
            "FSDP version 1 flattens weights, so gradients cannot be compared by name: set fsdp_version: 2."
        )
    loss = step_loss(forward(wrapped))
    # Not accelerator.backward, which under DeepSpeed takes a step too.
    wrapped.backward(loss) if wrapper == "DeepSpeed" else loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    gradients = {
        name: _full_gradient(weight, wrapper)
        for name, weight in accelerator.unwrap_model(wrapped).named_parameters()
        if weight.requires_grad
    }
    stage = f" ZeRO-{wrapped.zero_optimization_stage()}" if wrapper == "DeepSpeed" else ""
    where = f"{accelerator.num_processes} processes, {wrapper}{stage}"
    return Outcome(way, where, total.item() / accelerator.num_processes, gradients)


def check_wrapper_asked_for(actual: str) -> None:
    """Refuses another wrapper than the launch asked for, which libraries fall back to without a word."""
    for name in ("DeepSpeed", "FSDP"):
        asked = os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true"
        if asked and actual != name:
            raise UserError(
                f"The launch asks for {name}, but accelerate wrapped the model in {actual}: "
                f"{name} is not to be had on this machine, or ACCELERATE_USE_CPU is set."
            )


def _full_gradient(weight: Tensor, wrapper: str) -> Tensor:
    """The whole gradient of a weight that a wrapper may have scattered."""
    if wrapper == "DeepSpeed":
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(weight)
    if weight.grad is None:
        return torch.zeros_like(weight)
    return weight.grad.full_tensor() if isinstance(weight.grad, DTensor) else weight.grad


def compare(outcomes: list[Outcome]) -> list[Difference]:
    """Each way against the first one."""
    expected, *others = outcomes
    found = []
    for outcome in others:
        errors = {
            name: relative_error(outcome.gradients[name], gradient)
            for name, gradient in expected.gradients.items()
        }
        worst = max(errors, key=errors.__getitem__)
        loss = abs(outcome.loss - expected.loss) / abs(expected.loss)
        found.append(Difference(outcome.way, outcome.where, loss, errors[worst], worst))
    return found


def show(
    differences: list[Difference], *, title: str, tolerance: float, gradients: int, why: str = ""
) -> None:
    """The differences as a table.

    Args:
        differences: of each way.
        title: names the model.
        tolerance: largest relative error that counts as exact.
        gradients: how many were compared.
        why: where that tolerance comes from, if not from the user.
    """
    table = Table(title=escape(f"{title}: relative errors against padded rows in fp32"), title_justify="left")
    for heading in ("forward", "where", "loss", "worst gradient", "exact"):
        table.add_column(heading, overflow="fold")
    for each in differences:
        exact = max(each.loss, each.gradient) <= tolerance
        verdict = "[green]yes" if exact else "[bold red]NO"
        table.add_row(each.way, each.where, f"{each.loss:.1e}", f"{each.gradient:.1e}", verdict)
    console = Console()
    console.print(table)
    worst = max(differences, key=lambda each: each.gradient)
    console.print(f"worst gradient: {worst.parameter}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"{gradients} gradients compared, tolerance {tolerance:.0e}{why}", soft_wrap=True)
