"""LOGO's position synthesis: positions up to K from far fewer real tokens (arXiv 2410.18533, Eq. 4, App. D).

    0 … | chunk 0 | gap | chunk 1 | gap | … | chunk N−1 | gap | question, longest answer … K−1
    system part                                                unit steps

The token i of the context moves to position i + b. *Continuous*: one b a chunk, so gaps fall between chunks.
*Sparse*: one b a token, so gaps fall inside chunks too. The system part, the question and the answers keep unit steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from align.core.config import check_choice
from align.core.errors import UserError
from align.data.placements.bounds import check_target, slack_of
from align.data.positions import Placed

if TYPE_CHECKING:
    from align.data.positions import PromptParts
    from align.models.reach import Reach

# Places N chunks, of `lengths` tokens, in [0, extent): their tokens' positions, strictly increasing.
_Gaps = Callable[[Sequence[int], int, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Logo:
    """`positions=logo`, `logo_continuous` and `logo_sparse`; hydra_conf/positions/logo.yaml.

    Rows without a context stay where they are.

    Attributes:
        target_length: K, tokens; every position is < K, and the longest answer ends at K − 1.
        draw: `slots`: the context's extent is cut into slots, one a chunk, and each chunk is placed in its slot
            (the paper's (K − k) / N); `uniform`: sorted uniform biases.
        sparse_share: chance of a sparse row, drawn once a row, in [0, 1]; the others are continuous.
    """

    target_length: int = 65536
    draw: str = "slots"
    sparse_share: float = 0.1

    def check(self) -> None:
        """See `Placement.check`."""
        check_target(self.target_length)
        check_choice("positions.draw", self.draw, DRAWS)
        if not 0.0 <= self.sparse_share <= 1.0:
            raise UserError(f"positions.sparse_share={self.sparse_share:g} must lie in [0, 1].")

    def fitted(self, reach: Reach) -> Logo:
        """Itself: any RoPE reads such positions, as far as it reaches."""
        return self

    def place(self, parts: PromptParts, rng: np.random.Generator) -> Placed | None:
        """See `Placement.place`; None for a row without chunks."""
        if not parts.chunks:
            return None
        extent = slack_of(parts, self.target_length) + sum(parts.chunks)
        gaps = "sparse" if rng.random() < self.sparse_share else "continuous"
        context = _PLACED[gaps, self.draw](parts.chunks, extent, rng)
        question = parts.system + extent + np.arange(parts.question)
        return Placed(np.concatenate([np.arange(parts.system), parts.system + context, question]))


@dataclass(frozen=True)
class CoverWindows:
    """Windows of n positions that together cover a slot of w: ⌈w/n⌉ of them, evenly spread.

    A chunk of 4 in a slot of 10 has three windows: 0 … 3, 3 … 6 and 6 … 9.

    Window i starts at `i·(w − n) // (⌈w/n⌉ − 1)`, so the first starts at 0 and the last ends at w − 1. Windows are
    computed one by one: a slot of 10⁶ positions has half a million for a chunk of two tokens.

    Attributes:
        n: tokens of the chunk, 1 ≤ n ≤ w.
        w: positions in the slot.
    """

    n: int
    w: int

    def __post_init__(self) -> None:
        if not 1 <= self.n <= self.w:
            raise ValueError(f"a chunk of {self.n} tokens does not fit a slot of {self.w} positions")

    def __len__(self) -> int:
        return -(-self.w // self.n)

    def __getitem__(self, i: int) -> range:
        if not 0 <= i < len(self):
            raise IndexError(i)
        start = i * (self.w - self.n) // max(len(self) - 1, 1)
        return range(start, start + self.n)


def _slots(lengths: Sequence[int], extent: int) -> list[range]:
    """One slot a chunk, in order, together all of [0, extent), each wide enough for its chunk.

    Two chunks of 512 in an extent of 6,001 get the slots 0 … 2,999 and 3,000 … 6,000. The last slot ends where the
    question begins, so that the context may come as near to the question as it does when the model is used.

    Where K is so near the real length that a chunk does not fit its equal slot, widths are proportional to the chunks'
    lengths.
    """
    equal = [extent * i // len(lengths) for i in range(len(lengths) + 1)]
    total, before = sum(lengths), np.cumsum([0, *lengths]).tolist()
    edges = equal if max(lengths) <= extent // len(lengths) else [extent * n // total for n in before]
    return [range(start, stop) for start, stop in pairwise(edges)]


def _continuous_slots(lengths: Sequence[int], extent: int, rng: np.random.Generator) -> np.ndarray:
    """Each chunk in one of the windows that cover its slot, drawn uniformly."""
    placed = []
    for n, slot in zip(lengths, _slots(lengths, extent), strict=True):
        windows = CoverWindows(n, len(slot))
        window = windows[int(rng.integers(len(windows)))]
        placed.append(slot.start + np.arange(window.start, window.stop))
    return np.concatenate(placed)


def _sparse_slots(lengths: Sequence[int], extent: int, rng: np.random.Generator) -> np.ndarray:
    """Each chunk's tokens at distinct positions of its slot, drawn uniformly and sorted."""
    return np.concatenate(
        [
            slot.start + np.sort(rng.choice(len(slot), size=n, replace=False, shuffle=False))
            for n, slot in zip(lengths, _slots(lengths, extent), strict=True)
        ]
    )


def _continuous_uniform(lengths: Sequence[int], extent: int, rng: np.random.Generator) -> np.ndarray:
    """One bias a chunk, uniform over the slack and sorted, so that chunks keep their order.

    Two chunks of 3 tokens in an extent of 10 have a slack of 4; biases 1 and 4 give 1, 2, 3 and 7, 8, 9.
    """
    slack = extent - sum(lengths)
    biases = np.sort(rng.integers(slack + 1, size=len(lengths)))
    return np.arange(sum(lengths)) + np.repeat(biases, lengths)


def _sparse_uniform(lengths: Sequence[int], extent: int, rng: np.random.Generator) -> np.ndarray:
    """One bias a token, uniform over the slack and sorted, so that positions increase strictly.

    Three tokens in an extent of 6 have a slack of 3; biases 0, 2, 2 give 0, 3, 4.
    """
    total = sum(lengths)
    return np.arange(total) + np.sort(rng.integers(extent - total + 1, size=total))


_PLACED: dict[tuple[str, str], _Gaps] = {
    ("continuous", "slots"): _continuous_slots,
    ("sparse", "slots"): _sparse_slots,
    ("continuous", "uniform"): _continuous_uniform,
    ("sparse", "uniform"): _sparse_uniform,
}
DRAWS = ("slots", "uniform")  # of `positions.draw`
