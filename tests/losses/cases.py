"""Log-probs for the loss tests, without a model."""

from __future__ import annotations

from collections.abc import Sequence
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
        return PairLogps(
            chosen=(-uniform(prompts) * chosen_length).requires_grad_(),
            rejected=(-uniform(prompts, rejected) * rejected_length).requires_grad_(),
            chosen_length=chosen_length,
            rejected_length=rejected_length,
        )

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


def leaves(policy: PairLogps) -> list[Tensor]:
    """The tensors of a policy that a loss may differentiate: sums, nll, and those of the short prompt."""
    found = [policy.chosen, policy.rejected]
    if policy.nll is not None:
        found.append(policy.nll)
    return found + (leaves(policy.short) if policy.short is not None else [])


def with_leaves(policy: PairLogps, tensors: Sequence[Tensor]) -> PairLogps:
    """The inverse of `leaves`: the same policy on other tensors."""
    rest = list(tensors)
    changed = replace(policy, chosen=rest.pop(0), rejected=rest.pop(0))
    if policy.nll is not None:
        changed = replace(changed, nll=rest.pop(0))
    return changed if policy.short is None else replace(changed, short=with_leaves(policy.short, rest))


def columns(pair: PairLogps | None, order: Sequence[int]) -> PairLogps | None:
    """The rejected answers in another order, or a subset of them."""
    if pair is None:
        return None
    index = list(order)
    return replace(
        pair,
        rejected=pair.rejected[:, index],
        rejected_length=pair.rejected_length[:, index],
        short=columns(pair.short, order),
        columns={
            name: value if value.dim() == 1 else value[:, [0, *(j + 1 for j in index)]]
            for name, value in pair.columns.items()
        },
    )


def rows(pair: PairLogps | None, index: slice | list[int]) -> PairLogps | None:
    """Some of the prompts."""
    if pair is None:
        return None
    return PairLogps(
        chosen=pair.chosen[index],
        rejected=pair.rejected[index],
        chosen_length=pair.chosen_length[index],
        rejected_length=pair.rejected_length[index],
        nll=None if pair.nll is None else pair.nll[index],
        short=rows(pair.short, index),
        columns={name: value[index] for name, value in pair.columns.items()},
    )


def with_absent_column(pair: PairLogps | None, garbage: float = float("nan")) -> PairLogps | None:
    """One more rejected answer, absent (length 0), with `garbage` as its log-prob."""
    if pair is None:
        return None
    return replace(
        pair,
        rejected=torch.cat([pair.rejected, torch.full_like(pair.rejected[:, :1], garbage)], dim=1),
        rejected_length=torch.cat(
            [pair.rejected_length, torch.zeros_like(pair.rejected_length[:, :1])], dim=1
        ),
        short=with_absent_column(pair.short, garbage),
        columns={
            name: value if value.dim() == 1 else torch.cat([value, torch.zeros_like(value[:, :1])], dim=1)
            for name, value in pair.columns.items()
        },
    )
