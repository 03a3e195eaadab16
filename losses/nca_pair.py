"""NCA on pairs: the likelihood of each answer by itself, not their difference (arXiv 2402.05369)."""

from __future__ import annotations

import torch.nn.functional as F

from losses._pairs import average_over_pairs, check_reference, present_answers
from losses.rewards import log_ratio_reward
from losses.types import LossOutput, PairLogps


def nca_pair_loss(policy: PairLogps, reference: PairLogps | None, *, beta: float) -> LossOutput:
    """The NCA objective for preference pairs (arXiv 2402.05369), averaged over the pairs of a prompt.

        loss = mean_j [ −log σ(r_w) − ½·log σ(−r_w) − ½·log σ(−r_j) ],   r = β·[log π(y) − log π_ref(y)]

    Noise-contrastive estimation: an answer is told apart from what the reference writes, so that the chosen
    one's likelihood does not fall with the rejected one's. Lowest for r_w = log 2, whatever r_j. Example: r = 0.2
    and −0.2: 0.5981 + ½·0.7981 + ½·0.5981 = 1.2963.

    Args:
        policy: log-probs `[B]` and `[B, M]`, nats, sums over tokens.
        reference: the same answers under the reference model; required.
        beta: β, the paper's α, 1/nat.

    Returns:
        loss `[B]`; rewards `β·[log π(y) − log π_ref(y)]`, detached, 0 for an absent answer.

    Raises:
        ValueError: β ≤ 0, or without reference.
    """
    reference = check_reference("nca_pair_loss", policy, reference)
    chosen, rejected = log_ratio_reward(policy, reference, beta=beta)
    of_chosen = -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen)
    loss = average_over_pairs(of_chosen[:, None] - 0.5 * F.logsigmoid(-rejected), present_answers(policy))
    return LossOutput(loss, chosen.detach(), rejected.detach())
