"""The contract between the forward and every loss: log-probs in, one loss a prompt out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Summed log-probs of one chosen and M rejected answers a prompt (B prompts).

    Attributes:
        chosen: `[B]` sum of log-probs of the chosen answer's tokens, in nats, fp64 (sums of fp32 log-probs).
        rejected: `[B, M]` the same for each rejected answer; M = 0 is legal (SFT).
        chosen_length: `[B]` number of tokens summed.
        rejected_length: `[B, M]` the same; 0 marks an absent answer, which takes no part.
        nll: `[B]` mean negative log-prob over the declared `nll_scope`, or None.
        short: the policy on the short prompt, where a method declares it (SoLoPO).
        columns: numbers that rows bring along, where a method declares them (`needs.columns`): `[B]` of kind
            `prompt`, `[B, 1 + M]` of kind `answer`, the chosen answer's first, 0 for an absent answer. No gradient.
        weighted: `[B, 1 + M]` Σ w·log p over each answer's tokens, the chosen answer's first, where tokens have
            weights (`token_weights`); None where all weigh 1.
        weight: `[B, 1 + M]` Σ w of the same tokens.
        chosen_front: `[B, M]` log-probs of the chosen answer's first min(|y_w|, |y_l|) tokens, one sum for each pair,
            where a method declares it (`needs.fronts`).
        rejected_front: `[B, M]` the same of each rejected answer.
        collision: `[B, 1 + M]` Σ log Σ_v p_v² over each answer's tokens and the vocabulary v, the chosen answer's
            first, where a method declares it (`needs.collision`). No gradient.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    nll: Tensor | None = None
    short: PairLogps | None = None
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    weighted: Tensor | None = None
    weight: Tensor | None = None
    chosen_front: Tensor | None = None
    rejected_front: Tensor | None = None
    collision: Tensor | None = None


@dataclass(frozen=True)
class LossOutput:
    """What a loss returns.

    Attributes:
        loss: `[B]` one value a prompt; the step's loss is their mean over the global step.
        chosen_reward: `[B]` detached.
        rejected_reward: `[B, M]` detached.
    """

    loss: Tensor
    chosen_reward: Tensor
    rejected_reward: Tensor
