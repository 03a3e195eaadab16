"""LOGO's position synthesis: positions up to K from far fewer real tokens (arXiv 2410.18533, Eq. 4, App. D).

    0 … | chunk 0 | gap | chunk 1 | gap | … | chunk N−1 | gap | question, longest answer … K−1
    system part                                                unit steps

The token i of the context moves to position i + b. *Continuous*: one b a chunk, so gaps fall between chunks.
*Sparse*: one b a token, so gaps fall inside chunks too. Positions always increase strictly; the system part,
the question and the answers keep unit steps; all answers of a row share the prompt's positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from align.core.errors import UserError

if TYPE_CHECKING:
    from align.data.examples import TokenizedExample

# Places N chunks, of `lengths` tokens, in [0, extent): their tokens' positions, strictly increasing.
Placement = Callable[[Sequence[int], int, np.random.Generator], np.ndarray]


def row_rng(seed: int, source: int, index: int) -> np.random.Generator:
    """The random numbers of one row: the same whatever the order, the worker or the process that draws.

    Args:
        seed: of the run.
        source: number of the place that the row comes from (`data.path`, the held-out rows, each of `data.mix`), so
            that rows of one index in two places draw apart.
        index: of the row in it.
    """
    return np.random.default_rng([seed, source, index])


def synthesise(
    example: TokenizedExample,
    *,
    mode: str,
    target_length: int,
    draw: str = "slots",
    sparse_share: float = 0.1,
    rng: np.random.Generator,
) -> TokenizedExample:
    """The example with synthesised `position_ids` (`mode="none"`: the example as it is).

    Args:
        example: a row whose context chunks are marked in `chunk_spans`. What stands between two chunks
            belongs to the former.
        mode: `none`, `logo_continuous`, `logo_sparse`, or `logo`: sparse with chance `sparse_share`, else
            continuous, drawn once a row.
        target_length: K, tokens; every position is < K, and the longest answer ends at K − 1.
        draw: `slots`: the context's extent is cut into slots, one a chunk, and each chunk is placed in its slot
            (the paper's (K − k) / N); `uniform`: sorted uniform biases.
        sparse_share: chance of a sparse row in mode `logo`, in [0, 1].
        rng: see `row_rng`.

    Raises:
        UserError: unknown `mode` or `draw`, `sparse_share` outside [0, 1], a row without chunks, or K below
            the row's real length.
    """
    sparse_chance = _sparse_chance(mode, draw, sparse_share)
    if sparse_chance is None:
        return example
    lengths = _lengths(example, target_length)
    gaps = "sparse" if rng.random() < sparse_chance else "continuous"
    positions = np.empty(len(example.prompt_ids), dtype=np.int64)
    positions[: lengths.system] = np.arange(lengths.system)
    context = _PLACEMENTS[gaps, draw](lengths.chunks, lengths.extent, rng)
    question_at = lengths.system + lengths.extent
    positions[lengths.system : lengths.system + len(context)] = lengths.system + context
    positions[len(positions) - lengths.question :] = question_at + np.arange(lengths.question)
    return replace(example, position_ids=positions)


def has_context(example: TokenizedExample) -> bool:
    """Whether a row has chunks of a context, which position synthesis moves."""
    return any(stop > start for start, stop in example.chunk_spans)


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


@dataclass(frozen=True)
class _Lengths:
    """How many tokens each stretch of a prompt has, and how many positions are open to its context.

    A system part of 20, two chunks of 512, a question of 30 and an answer of 50 tokens in K = 8,192 positions: the
    context's 1,024 tokens move within 8,192 − 20 − 30 − 50 = 8,092.
    """

    system: int
    chunks: tuple[int, ...]
    question: int
    extent: int


def _sparse_chance(mode: str, draw: str, sparse_share: float) -> float | None:
    """The chance that a row is sparse; None where positions stay as they are."""
    chances = {"none": None, "logo_continuous": 0.0, "logo_sparse": 1.0, "logo": sparse_share}
    if mode not in chances:
        raise UserError(f"positions.mode={mode} is unknown; choose one of {', '.join(chances)}")
    draws = sorted({draw for _, draw in _PLACEMENTS})
    if draw not in draws:
        raise UserError(f"positions.draw={draw} is unknown; choose one of {', '.join(draws)}")
    if not 0.0 <= sparse_share <= 1.0:
        raise UserError(f"positions.sparse_share={sparse_share} is no chance; give a number from 0 to 1")
    return chances[mode]


def _lengths(example: TokenizedExample, target_length: int) -> _Lengths:
    """Measures a prompt; raises UserError where it has no chunks or more tokens than K."""
    starts = [start for start, stop in example.chunk_spans if stop > start]
    if not starts:
        raise UserError(
            f"{example.source}: position synthesis moves context chunks and this row has none; "
            "give `context` and `question`, or set positions=none"
        )
    real_length = len(example.prompt_ids) + example.longest_answer
    if target_length < real_length:
        raise UserError(
            f"{example.source}: the prompt and its longest answer have {real_length} tokens, more than "
            f"positions.target_length={target_length}; raise it or lower data.max_length"
        )
    stop = example.chunk_spans[-1][1]
    chunks = tuple(int(n) for n in np.diff([*starts, stop]))
    question = len(example.prompt_ids) - stop
    extent = target_length - starts[0] - question - example.longest_answer
    return _Lengths(system=starts[0], chunks=chunks, question=question, extent=extent)


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


_PLACEMENTS: dict[tuple[str, str], Placement] = {
    ("continuous", "slots"): _continuous_slots,
    ("sparse", "slots"): _sparse_slots,
    ("continuous", "uniform"): _continuous_uniform,
    ("sparse", "uniform"): _sparse_uniform,
}
