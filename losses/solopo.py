"""SoLoPO: preference on the short context, and the chosen reward carried over to the long one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from losses.types import LossOutput, PairLogps

Loss = Callable[[PairLogps, PairLogps | None], LossOutput]
Reward = Callable[[PairLogps, PairLogps | None], tuple[Tensor, Tensor]]


def solopo_loss(
    policy: PairLogps,
    reference: PairLogps | None = None,
    *,
    preference: Loss,
    reward: Reward,
    alignment_weight: float,
) -> LossOutput:
    """The SoLoPO objective (arXiv 2505.11166): short preference and short-to-long reward alignment.

        loss = L_PO(x_short; y_w, y_l) + α·|r(x_short, y_w) − r(x_long, y_w)|

    Rejected answers on the long context take no part.

    Args:
        policy: on the long context, with `short` on the short one.
        reference: for a `preference` that has one: on the long context, with `short`; else None.
        preference: L_PO, a loss of this package with its settings filled in.
        reward: r, the reward that belongs to it (`losses.rewards`), settings filled in.
        alignment_weight: α, weight of the absolute difference of rewards.

    Returns:
        loss `[B]`; rewards r on the long context, detached, 0 for an absent answer.

    Raises:
        ValueError: without `policy.short`, or where `preference` lacks a reference that it needs.
    """
    if policy.short is None:
        raise ValueError(
            "solopo_loss needs log-probs on the short prompt: policy.short (needs.policy_short: true)"
        )
    short_reference = None if reference is None else reference.short
    short_chosen, _ = reward(policy.short, short_reference)
    long_chosen, long_rejected = reward(policy, reference)
    alignment = (short_chosen - long_chosen).abs()
    loss = preference(policy.short, short_reference).loss + alignment_weight * alignment
    return LossOutput(loss, long_chosen.detach(), long_rejected.detach())
