"""Log-probs for the loss tests, without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from align.training.method_settings import Needs
from losses import PairLogps


def logps(
    chosen: Sequence[float],
    rejected: Sequence[Sequence[float]],
    *,
    chosen_length: Sequence[int] | None = None,
    rejected_length: Sequence[Sequence[int]] | None = None,
    nll: Sequence[float] | None = None,
    short: PairLogps | None = None,
) -> PairLogps:
    """fp64 log-probs that require gradients; lengths default to 1, so that a sum is a mean."""
    chosen_sum = torch.tensor(chosen, dtype=torch.float64, requires_grad=True)
    rejected_sum = torch.tensor(rejected, dtype=torch.float64).reshape(len(chosen), -1).requires_grad_()
    return PairLogps(
        chosen=chosen_sum,
        rejected=rejected_sum,
        chosen_length=torch.tensor(chosen_length or [1] * len(chosen)),
        rejected_length=(
            torch.ones(rejected_sum.shape, dtype=torch.long)
            if rejected_length is None
            else torch.tensor(rejected_length)
        ),
        nll=None if nll is None else torch.tensor(nll, dtype=torch.float64, requires_grad=True),
        short=short,
    )


def labelled(pair: PairLogps, labels: Sequence[Sequence[int]]) -> PairLogps:
    """The same answers with labels `[B, 1 + M]`: 1 desirable, 0 undesirable, −1 an answer to another prompt."""
    return replace(pair, columns={"label": torch.tensor(labels, dtype=torch.float64)})


def random_pair(
    needs: Needs, *, prompts: int = 3, rejected: int = 2, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[PairLogps, PairLogps | None]:
    """Random policy and reference as `needs` asks for them: 0.5 to 3 nats a token, 1 to 12 tokens."""
    generator = torch.Generator().manual_seed(seed)

    def answers(lengths: PairLogps | None = None) -> PairLogps:
        def uniform(*shape: int) -> Tensor:
            return 0.5 + 2.5 * torch.rand(shape, generator=generator, dtype=dtype)

        if lengths is None:
            chosen_length = torch.randint(1, 13, (prompts,), generator=generator)
            rejected_length = torch.randint(1, 13, (prompts, rejected), generator=generator)
        else:
            chosen_length, rejected_length = lengths.chosen_length, lengths.rejected_length
        made = PairLogps(
            chosen=(-uniform(prompts) * chosen_length).requires_grad_(),
            rejected=(-uniform(prompts, rejected) * rejected_length).requires_grad_(),
            chosen_length=chosen_length,
            rejected_length=rejected_length,
        )
        lengths = torch.cat([chosen_length[:, None], rejected_length], dim=1)
        if needs.token_weights:
            weight = uniform(prompts, 1 + rejected) * lengths
            made = replace(made, weighted=(-uniform(prompts, 1 + rejected) * weight).requires_grad_())
            made = replace(made, weight=weight)
        if needs.fronts:
            shares = torch.rand((2, prompts, rejected), generator=generator, dtype=dtype)
            fronts = [shares[0] * made.chosen[:, None].detach(), shares[1] * made.rejected.detach()]
            made = replace(
                made, chosen_front=fronts[0].requires_grad_(), rejected_front=fronts[1].requires_grad_()
            )
        if needs.collision:
            made = replace(made, collision=-uniform(prompts, 1 + rejected) * lengths)
        return made

    policy = answers()
    reference = None if needs.reference == "none" else answers(policy)
    if needs.policy_short:
        policy = replace(policy, short=answers(policy))
        reference = None if reference is None else replace(reference, short=answers(policy))
    if needs.nll_scope != "none":
        nll = 0.5 + torch.rand(prompts, generator=generator, dtype=dtype)
        policy = replace(policy, nll=nll.requires_grad_())
    numbers = 0.5 + torch.rand((prompts, 1 + rejected), generator=generator, dtype=dtype)
    # The own answer is good or bad; the next one, where a loss reads such a one, belongs to another prompt.
    judged = torch.cat([(numbers[:, :1] > 1).to(dtype), torch.zeros_like(numbers[:, 1:])], dim=1)
    if needs.answers == "unrelated":
        judged[:, 1:2] = -1
    values = {"prompt": numbers[:, 0], "answer": numbers, "label": judged}
    columns = {name: values[kind] for name, kind in needs.columns.items()}
    return replace(policy, columns=columns), reference


LEAVES = ("chosen", "rejected", "nll", "weighted", "chosen_front", "rejected_front")
# Fields of `[B, M]`, one a pair, and of `[B, 1 + M]`, one an answer, beside the first three.
OF_PAIRS = ("rejected", "rejected_length", "chosen_front", "rejected_front")
OF_ANSWERS = ("weighted", "weight", "collision")


def each(pair: PairLogps, names: Sequence[str], change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The fields of these names that are there, changed."""
    return {name: change(getattr(pair, name)) for name in names if getattr(pair, name) is not None}


def leaves(policy: PairLogps) -> list[Tensor]:
    """The tensors of a policy that a loss may differentiate: sums, nll, and those of the short prompt."""
    found = [getattr(policy, name) for name in LEAVES if getattr(policy, name) is not None]
    return found + (leaves(policy.short) if policy.short is not None else [])


def with_leaves(policy: PairLogps, tensors: Sequence[Tensor]) -> PairLogps:
    """The inverse of `leaves`: the same policy on other tensors."""
    rest, changed = list(tensors), policy
    for name in LEAVES:
        if getattr(policy, name) is not None:
            changed = replace(changed, **{name: rest.pop(0)})
    return changed if policy.short is None else replace(changed, short=with_leaves(policy.short, rest))


def columns(pair: PairLogps | None, order: Sequence[int]) -> PairLogps | None:
    """The rejected answers in another order, or a subset of them."""
    if pair is None:
        return None
    index = list(order)
    answers = [0, *(j + 1 for j in index)]
    return replace(
        pair,
        **each(pair, OF_PAIRS, lambda values: values[:, index]),
        **each(pair, OF_ANSWERS, lambda values: values[:, answers]),
        short=columns(pair.short, order),
        columns={
            name: value if value.dim() == 1 else value[:, answers] for name, value in pair.columns.items()
        },
    )


def rows(pair: PairLogps | None, index: slice | list[int]) -> PairLogps | None:
    """Some of the prompts."""
    if pair is None:
        return None
    return replace(
        pair,
        **each(
            pair,
            ("chosen", "chosen_length", "nll", *OF_PAIRS, *OF_ANSWERS),
            lambda values: values[index],
        ),
        short=rows(pair.short, index),
        columns={name: value[index] for name, value in pair.columns.items()},
    )


def with_absent_column(pair: PairLogps | None, garbage: float = float("nan")) -> PairLogps | None:
    """One more rejected answer, absent (length 0), with `garbage` as its log-prob."""
    if pair is None:
        return None

    def widened(values: Tensor, by: float) -> Tensor:
        return torch.cat([values, torch.full_like(values[:, :1], by)], dim=1)

    return replace(
        pair,
        **each(
            pair,
            ("rejected", "chosen_front", "rejected_front", *OF_ANSWERS),
            lambda values: widened(values, garbage),
        ),
        rejected_length=widened(pair.rejected_length, 0),
        short=with_absent_column(pair.short, garbage),
        columns={
            name: value if value.dim() == 1 else widened(value, 0) for name, value in pair.columns.items()
        },
    )
