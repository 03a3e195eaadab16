"""A micro-batch → the policy's log-probs with everything that the method reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from align.reference.sources import sum_turns
from align.training.row_numbers import with_columns

if TYPE_CHECKING:
    from align.longseq.balance import Routing
    from align.training.method_settings import Needs
    from losses.types import PairLogps


def policy_logps(
    forward: Callable[..., PairLogps], inputs: dict[str, Any], needs: Needs, *, routing: Routing | None
) -> PairLogps:
    """The policy's log-probs of B prompts, with their graph.

    Args:
        forward: `pair_logps` of the policy, in its group.
        inputs: `batch`, and `short` and `owner` where the method reads the short context.
        needs: of the method.
        routing: takes in what the routers of a mixture of experts decide.
    """
    batch = inputs["batch"]
    policy = forward(batch, nll_scope=needs.nll_scope, collision=needs.collision, routing=routing)
    if needs.policy_short:
        turns = forward(inputs["short"], collision=needs.collision)
        policy = replace(policy, short=sum_turns(turns, inputs["owner"], len(batch)))
    return with_columns(policy, batch, needs.columns)
