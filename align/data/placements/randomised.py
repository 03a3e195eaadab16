"""Random positions after Giraffe (arXiv 2308.10882): a row's tokens in order, at random distances up to K.

Giraffe's released code reads real positions: each token stands a step from U[0, 2) behind the one before it, the first
one at its step. Where a row's last position exceeds its T tokens, all are multiplied by T over it: the range stays T.
Here positions are integers below K. The T tokens leave K − T of them free, and those are shared out by the same steps:

    steps 1 1.9 1.5 1.6 1.2 1.8   sums 1 2.9 4.4 6 7.2 9   by 6/9: .67 1.93 2.93 4 4.8 6     (the released code)
    K = 12, so 6 free positions:  0 + ⌊.67⌋, 1 + ⌊1.93⌋, 2 + ⌊2.93⌋, …                        0 2 4 7 8 11

So it differs from the released code in three ways: positions are integers that increase strictly; their range is K; and
T are the prompt's tokens alone, behind which answers go on by unit steps, so that siblings share the prompt's
positions. Of a document of plain text all tokens are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from align.data.placements.bounds import check_target, slack_of
from align.data.positions import Placed

if TYPE_CHECKING:
    from align.data.positions import PromptParts
    from align.models.reach import Reach


@dataclass(frozen=True)
class Randomised:
    """`positions=random`; hydra_conf/positions/random.yaml.

    Attributes:
        target_length: K, tokens; the prompt lies in 0 … K − 1 less the longest answer.
    """

    target_length: int = 65536

    def check(self) -> None:
        """See `Placement.check`."""
        check_target(self.target_length)

    def fitted(self, reach: Reach) -> Randomised:
        """Itself: any RoPE reads such positions, as far as it reaches."""
        return self

    def place(self, parts: PromptParts, rng: np.random.Generator) -> Placed:
        """See `Placement.place`."""
        slack, tokens = slack_of(parts, self.target_length), parts.tokens
        gone = rescaled_sums(rng.uniform(0.0, 2.0, tokens)) / tokens
        return Placed(np.arange(tokens) + np.floor(gone * slack).astype(np.int64))


def rescaled_sums(steps: np.ndarray) -> np.ndarray:
    """`[n]` fp64 sums of steps, multiplied by n over the last one where that exceeds n: Giraffe's positions.

    Args:
        steps: `[n]` fp64, none below 0.
    """
    sums = np.cumsum(steps)
    return sums * (len(sums) / sums[-1]) if sums[-1] > len(sums) else sums
