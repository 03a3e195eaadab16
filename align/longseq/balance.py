"""The load-balancing loss of a mixture of experts (Switch, arXiv:2101.03961; over all layers at once as Mixtral's).

E · Σ_e f_e · P_e over E experts, where f_e is how often a token chose expert e (k choices a token) and P_e the mean
probability that its router gave e, both over the tokens of all layers. It is k where every expert is chosen equally.

Tokens are counted as they lie in packed rows: those of a prompt once and of each answer once. Those that nobody sees
(at a shard's end, in an empty row, repeated to fill a tile, of placeholders) are not counted. Choices and probabilities
are added up over all processes before they are multiplied, so that neither packing nor the degree of sequence
parallelism nor the number of processes changes the loss; only what is one micro-batch does.

How its gradient comes to the routers: the loss is linear in the probabilities once the choices are known, so that each
token's gradient is `E · f_e / N` for its probability of e, N being tokens times layers. A router's hook leads the
weights of the chosen experts, from which the backward pass comes, through a function that adds that to the gradient of
the logits (as Megatron-LM adds its auxiliary losses). Checkpointed layers and tiles run that function again with the
layer and go through its backward pass once; what is counted is counted in the forward alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import pad
from transformers.modeling_layers import GradientCheckpointingLayer

from align.core.errors import UserError
from align.longseq.logps import sum_dtype
from align.longseq.moving import to_device
from align.longseq.parallel import SequenceParallel
from align.longseq.sharding import token_index
from align.longseq.shared_prefix import SharedPrefixBatch, SharedPrefixRow
from align.models.routers import PROBABILITIES, Router, read_router
from align.models.structure import find_causal_lm

KEYWORD = "routing"  # by which a forward's `Routed` reaches the decoder layers


class Routed(NamedTuple):
    """What a layer is told of its tokens; a tuple, so that tiles cut its tensor as they cut position embeddings.

    Attributes:
        counted: `[1, T]` whether a token counts.
        routing: where its routers' decisions are added up.
    """

    counted: Tensor
    routing: Routing


class Routing:
    """The routers' decisions in one micro-batch, and after its forward the loss that they make."""

    def __init__(self, router: Router, real: Sequence[bool], weight: float, device: torch.device) -> None:
        """Starts at 0.

        Args:
            router: what the model's routers are.
            real: `[B]` False for prompts that count nowhere.
            weight: of the micro-batch in its step, which is added up over processes too.
            device: where the model computes.
        """
        self.router, self.real, self.device = router, real, device
        # Choices and probabilities by expert, tokens times layers, weight.
        self._sums = torch.zeros(2 * router.experts + 2, dtype=sum_dtype(device), device=device)
        self._sums[-1].fill_(weight)
        self._own = 0
        self._routers: set[nn.Module] = set()
        self._recording = True
        self.slope: Tensor | None = None
        self.gradient: Tensor | None = None
        self.loss: Tensor | None = None
        self.weight = self._sums[-1]

    def keywords(
        self, batch: SharedPrefixBatch, parallel: SequenceParallel | None, calls: int
    ) -> Iterator[dict[str, Routed]]:
        """What each of the forward's calls of the model gets besides; calls beyond the rows count nothing."""
        start = 0
        for row in batch.rows:
            counted = _own_counted(row.host, self.real[start : start + len(row.lengths)], parallel)
            start += len(row.lengths)
            self._own += int(counted.sum())
            yield {KEYWORD: Routed(to_device(counted, self.device), self)}
        size = 1 if parallel is None else 2
        for _ in range(calls - len(batch.rows)):
            none = torch.zeros(1, size, dtype=torch.bool, device=self.device)
            yield {KEYWORD: Routed(none, self)}

    @torch.no_grad()
    def add(self, router: nn.Module, probabilities: Tensor, chosen: Tensor, counted: Tensor) -> None:
        """Adds a router's decisions for some tokens, in the forward; a recomputation of the layer adds nothing.

        Args:
            router: the module.
            probabilities: `[n, E]`.
            chosen: `[n, k]` experts.
            counted: `[n]` which tokens count.
        """
        if not self._recording:
            return
        self._routers.add(router)
        kind, experts = self._sums.dtype, self.router.experts
        choices = torch.zeros_like(probabilities, dtype=kind).scatter_(1, chosen, 1.0)
        self._sums[:experts] += (choices * counted[:, None]).sum(0)
        self._sums[experts : 2 * experts] += (probabilities.to(kind) * counted[:, None]).sum(0)
        self._sums[-2] += counted.sum()

    def close(self, totals: Tensor) -> Tensor:
        """Ends the forward; every process of the world calls it.

        Args:
            totals: what the micro-batch's loss is made of, which the backward pass comes through.

        Returns:
            The same values. `loss` is the balance loss now, the same on every process; it enters the loss there as it
            is, and gradients are such that their mean over the world is the true one.

        Raises:
            UserError: a router was not called for every token exactly once.
        """
        self._recording = False
        seen, expected = self._sums[-2].item(), self._own * len(self._routers)
        if seen != expected or not self._routers:
            raise UserError(
                f"The model's {self.router.kind.__name__} routed {seen:.0f} tokens where {expected:.0f} were there, so "
                "that its load-balancing loss would be wrong: set model.moe.balance=0."
            )
        world = 1
        if dist.is_available() and dist.is_initialized():
            world = dist.get_world_size()
            dist.all_reduce(self._sums)
        experts, sums = self.router.experts, self._sums
        tokens, self.weight = sums[-2].clamp_min(1.0), sums[-1]
        fractions, means = sums[:experts] / tokens, sums[experts : 2 * experts] / tokens
        self.slope = experts * fractions / tokens
        joined, self.loss = _Join.apply(totals, experts * (fractions @ means), self, world)
        return joined


def _own_counted(row: SharedPrefixRow, real: Sequence[bool], parallel: SequenceParallel | None) -> Tensor:
    """`[1, t]` which of the tokens that this process reads of a row on the CPU count."""
    marks = torch.zeros(1, row.layout.length, dtype=torch.bool)
    for packed, counts in zip(row.layout.prompts, real, strict=True):
        marks[:, packed.prompt[0] : packed.stop] = bool(counts)
    if parallel is None:
        return marks
    own = parallel.shards(row, parallel.degree)[parallel.rank]
    return pad(marks[:, token_index(own)], (0, 1))  # the token that a shard ends with is nobody's


class _Join(Function):
    """Puts the balance loss beside what the forward gave, so that its gradient is known before any router's."""

    @staticmethod
    def forward(ctx: Any, totals: Tensor, value: Tensor, routing: Routing, world: int) -> Any:
        ctx.routing, ctx.world = routing, world
        return totals.clone(), value.clone()

    @staticmethod
    def backward(ctx: Any, of_totals: Tensor, of_value: Tensor) -> Any:  # type: ignore[override]
        # A process's tokens are its own alone, and a wrapper takes the mean over the world.
        ctx.routing.gradient = of_value * ctx.world
        return of_totals, None, None, None


class _Attach(Function):
    """Returns the chosen experts' weights; its backward gives the logits the balance loss's gradient."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, logits: Tensor, counted: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing
        ctx.save_for_backward(logits, counted)
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        logits, counted = ctx.saved_tensors
        routing: Routing = ctx.routing
        assert routing.slope is not None, "the forward was not closed"
        assert routing.gradient is not None, "the backward pass did not come through the loss"
        with torch.enable_grad():
            leaf = logits.detach().requires_grad_()
            probabilities = _probabilities(leaf, routing.router.form)
        slope = (routing.slope * routing.gradient).to(probabilities.dtype)
        (of_logits,) = torch.autograd.grad(probabilities, leaf, counted[:, None] * slope)
        return gradient, of_logits, None, None


def _probabilities(logits: Tensor, form: str) -> Tensor:
    """`[n, E]`, in fp32 at least."""
    return PROBABILITIES[form](logits.to(torch.promote_types(logits.dtype, torch.float32)))


class RouterWatch:
    """Hooks on a model's layers and routers, which do nothing in a forward without `KEYWORD`.

    Args:
        model: the policy, before any wrapper but PEFT.

    Raises:
        UserError: as `read_router`.
    """

    def __init__(self, model: nn.Module) -> None:
        lm = find_causal_lm(model)
        self.router = read_router(type(lm), lm.config)
        self._routed: Routed | None = None
        for module in lm.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.register_forward_pre_hook(self._before_layer, with_kwargs=True)
                for child in module.children():
                    child.register_forward_pre_hook(self._before_child, with_kwargs=True)
            if isinstance(module, self.router.kind):
                module.register_forward_hook(self._after_router)

    def _before_layer(self, layer: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
        self._routed = keywords.get(KEYWORD)

    def _before_child(self, child: nn.Module, args: Any, keywords: dict[str, Any]) -> None:
        """As attention is called, which gets the layer's keywords: also for a tile, and when a layer is recomputed."""
        if "layout" in keywords:
            self._routed = keywords.get(KEYWORD)

    def _after_router(self, router: nn.Module, args: Any, output: Any) -> Any:
        if self._routed is None:
            return None
        counted, routing = self._routed.counted.flatten(), self._routed.routing
        logits, weights, chosen = output
        if logits.shape != (len(counted), routing.router.experts):
            raise UserError(
                f"The model's {type(router).__name__} gives logits of another shape than {len(counted)} tokens times "
                f"{routing.router.experts} experts: set model.moe.balance=0."
            )
        routing.add(router, _probabilities(logits, routing.router.form), chosen, counted)
        return logits, _Attach.apply(weights, logits, counted, routing), chosen
