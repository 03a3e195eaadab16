"""A tokenised row as people want to see it: its prompt by sections, its answers by what is scored."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from align.data.examples import Answer, TokenizedExample

MAX_CHUNKS = 8  # chunks described one by one; of more only the first and last half of this


@dataclass(frozen=True)
class Section:
    """Consecutive tokens of a prompt with one task: `Section("chunk 3", ids, 1024, 1535, "+512 before")`.

    Attributes:
        name: `system`, `chunk 3`, `question`, `prompt` where no chunk is marked, or `chunks 5–12` for several.
        ids: `[n]` its tokens, n ≥ 1.
        first: position of its first token.
        last: position of its last token.
        jumps: where its positions do not go on by the row's step: `+512 before`, `7 inside, to +40`, or empty; and a
            step other than 1, `steps of 5`.
    """

    name: str
    ids: np.ndarray
    first: int
    last: int
    jumps: str


def prompt_sections(example: TokenizedExample) -> list[Section]:
    """The prompt as system message, chunks (with what separates them) and question."""
    spans = example.chunk_spans
    total = len(example.prompt_ids)
    if not spans:
        return [_section(example, "prompt", 0, total)]
    edges = [start for start, _ in spans] + [spans[-1][1]]
    sections = [_section(example, "system", 0, edges[0])] if edges[0] else []
    half = MAX_CHUNKS // 2
    for first, last in _grouped(len(spans), half):
        name = f"chunk {first + 1}" if last == first + 1 else f"chunks {first + 1}–{last}"
        sections.append(_section(example, name, edges[first], edges[last]))
    if edges[-1] < total:
        sections.append(_section(example, "question", edges[-1], total))
    return sections


def answer_runs(answer: Answer) -> Iterator[tuple[np.ndarray, bool]]:
    """The answer's tokens in runs that are scored or not."""
    edges = [0, *(np.flatnonzero(np.diff(answer.scored)) + 1).tolist(), len(answer.scored)]
    for start, stop in itertools.pairwise(edges):
        yield answer.input_ids[start:stop], bool(answer.scored[start])


def _grouped(count: int, half: int) -> list[tuple[int, int]]:
    """Chunk numbers one by one; of 20 with half = 4 the numbers 0 … 3, then (4, 16) as one, then 16 … 19."""
    if count <= 2 * half + 1:
        return [(i, i + 1) for i in range(count)]
    ends = [(i, i + 1) for i in range(count)]
    return [*ends[:half], (half, count - half), *ends[count - half :]]


def answer_jumps(example: TokenizedExample, answer: Answer) -> str:
    """As `Section.jumps`, of an answer; only a document's, whose tokens are placed too, jump."""
    return _jumps(example.positions_of(answer), int(example.position_ids[-1]), example.position_step)


def _section(example: TokenizedExample, name: str, start: int, stop: int) -> Section:
    positions, step = example.position_ids[start:stop], example.position_step
    last = int(example.position_ids[start - 1]) if start else -step
    jumps = _jumps(positions, last, step)
    return Section(name, example.prompt_ids[start:stop], int(positions[0]), int(positions[-1]), jumps)


def _jumps(positions: np.ndarray, last: int, step: int) -> str:
    """See `Section.jumps`; `last` is the position before."""
    before, inside = int(positions[0]) - last - step, np.diff(positions) - step
    words = [] if step == 1 else [f"steps of {step}"]
    words += [f"{before:+} before"] if before else []
    words += [f"{np.count_nonzero(inside)} inside, to {inside.max():+}"] if inside.any() else []
    return ", ".join(words)
