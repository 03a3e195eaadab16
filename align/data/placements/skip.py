"""PoSE's positions (arXiv 2309.10400): a row cut into a few chunks, before each but the first a random skip.

    8 tokens in K = 20, cut after 3, a skip of 9:   0 1 2 12 13 14 15 16

Chunk i is moved by u_i, with u_0 = 0 and u_i drawn from u_(i−1) … K − T, T the row's tokens. In the released code two
chunks are cut from a longer text, the first of 1 … T/2 tokens, and what lies between them is left out, since a language
model's data is plentiful; here a row keeps all its tokens, and each cut is equally likely. The answers belong to the
last chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from align.core.errors import UserError
from align.data.placements.bounds import check_target, slack_of
from align.data.positions import Placed

if TYPE_CHECKING:
    from align.data.positions import PromptParts
    from align.models.reach import Reach


@dataclass(frozen=True)
class Skip:
    """`positions=skip`; hydra_conf/positions/skip.yaml.

    Attributes:
        target_length: K, tokens; every position is < K.
        chunks: N, 2 in the paper; a prompt of fewer tokens has as many chunks as tokens.
    """

    target_length: int = 65536
    chunks: int = 2

    def check(self) -> None:
        """See `Placement.check`."""
        check_target(self.target_length)
        if self.chunks < 2:
            raise UserError(
                f"positions.chunks={self.chunks} leaves nothing to skip: give a number from 2 on."
            )

    def fitted(self, reach: Reach) -> Skip:
        """Itself: any RoPE reads such positions, as far as it reaches."""
        return self

    def place(self, parts: PromptParts, rng: np.random.Generator) -> Placed:
        """See `Placement.place`."""
        slack, tokens = slack_of(parts, self.target_length), parts.tokens
        cuts = min(self.chunks, tokens) - 1
        starts = 1 + np.sort(rng.choice(tokens - 1, size=cuts, replace=False)) if cuts else ()
        positions, skipped = np.arange(tokens), 0
        for start in starts:
            more = int(rng.integers(slack - skipped + 1))
            positions[start:] += more
            skipped += more
        return Placed(positions)
