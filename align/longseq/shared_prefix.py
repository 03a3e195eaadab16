"""A row of shared prompts: one prompt followed by its answers, several such groups packed, no padding.

    | prompt 0 | chosen 0 | rejected 0,1 | rejected 0,2 | prompt 1 | chosen 1 | …

Every answer attends its prompt and itself, never a sibling or another group. An answer's first token is
predicted from the *prompt's* last hidden state, so scoring goes through an index and no token is doubled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from align.data.examples import TokenizedExample


@dataclass(frozen=True)
class Group:
    """One prompt and its answers as spans `(start, stop)` of the row; they follow each other without gaps."""

    prompt: tuple[int, int]
    answers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Layout:
    """Which tokens of a row are prompt and which belong to which answer. Reaches attention as a keyword."""

    groups: tuple[Group, ...]

    @property
    def length(self) -> int:
        """T, the tokens in the row."""
        last = self.groups[-1]
        return last.answers[-1][1] if last.answers else last.prompt[1]

    @property
    def longest_sequence(self) -> int:
        """The most tokens that one answer sees, itself included: what a sliding window has to cover."""
        return max(
            (group.prompt[1] - group.prompt[0]) + max((stop - start for start, stop in group.answers), default=0)
            for group in self.groups
        )


@dataclass(frozen=True)
class SharedPrefixRow:
    """One packed row, ready for the model (T tokens, S scored tokens, b prompts, A = 1 + M answers each).

    Attributes:
        input_ids: `[1, T]`.
        position_ids: `[1, T]`.
        layout: spans of prompts and answers.
        source: `[S]` index in `[0, T)` of the hidden state that predicts a scored token.
        target: `[S]` the scored token's id.
        answer: `[S]` flat index `prompt · A + answer` in `[0, b·A)`; answer 0 is the chosen one.
        lengths: `[b, A]` scored tokens of each answer; 0 for an absent one.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    source: Tensor
    target: Tensor
    answer: Tensor
    lengths: Tensor

    def to(self, device: torch.device | str) -> SharedPrefixRow:
        """The same row with its tensors on `device`."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **tensors)


@dataclass(frozen=True)
class SharedPrefixBatch:
    """A micro-batch: its prompts in order, packed into one or more rows."""

    rows: tuple[SharedPrefixRow, ...]

    def __len__(self) -> int:
        """B, the number of prompts."""
        return sum(len(row.lengths) for row in self.rows)

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads."""
        return sum(row.layout.length for row in self.rows)

    def to(self, device: torch.device | str) -> SharedPrefixBatch:
        """The same batch with its tensors on `device` (what `Trainer._prepare_inputs` calls)."""
        return SharedPrefixBatch(tuple(row.to(device) for row in self.rows))


def pack(examples: Sequence[TokenizedExample], *, tokens_per_row: int | None = None) -> SharedPrefixBatch:
    """Packs prompts with their answers into rows, in order, each row at most `tokens_per_row` tokens.

    Args:
        examples: B ≥ 1 tokenised rows; their number of answers may differ.
        tokens_per_row: None packs everything into one row. An example that alone is longer than this
            gets a row of its own: it cannot be split.
    """
    if not examples:
        raise ValueError("pack needs at least one example")
    answers = max(len(example.answers) for example in examples)
    rows: list[list[TokenizedExample]] = [[]]
    used = 0
    for example in examples:
        if rows[-1] and tokens_per_row is not None and used + example.num_tokens > tokens_per_row:
            rows.append([])
            used = 0
        rows[-1].append(example)
        used += example.num_tokens
    return SharedPrefixBatch(tuple(_row(row, answers) for row in rows))


def _row(examples: Sequence[TokenizedExample], answers: int) -> SharedPrefixRow:
    """Lays out `examples` one after the other; `answers` = A of the whole batch."""
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    groups: list[Group] = []
    source: list[Tensor] = []
    target: list[Tensor] = []
    answer_index: list[Tensor] = []
    lengths = torch.zeros(len(examples), answers, dtype=torch.long)
    offset = 0
    for b, example in enumerate(examples):
        prompt = (offset, offset + len(example.prompt_ids))
        ids.append(torch.as_tensor(example.prompt_ids, dtype=torch.long))
        positions.append(torch.as_tensor(example.position_ids, dtype=torch.long))
        after_prompt = int(example.position_ids[-1]) + 1
        offset = prompt[1]
        spans = []
        for j, answer in enumerate(example.answers):
            tokens = torch.as_tensor(answer.input_ids, dtype=torch.long)
            n = len(tokens)
            predecessor = torch.arange(offset - 1, offset + n - 1)
            predecessor[0] = prompt[1] - 1
            scored = torch.as_tensor(answer.scored, dtype=torch.bool)
            ids.append(tokens)
            positions.append(torch.arange(after_prompt, after_prompt + n))
            source.append(predecessor[scored])
            target.append(tokens[scored])
            lengths[b, j] = int(scored.sum())
            answer_index.append(torch.full((int(lengths[b, j]),), b * answers + j, dtype=torch.long))
            spans.append((offset, offset + n))
            offset += n
        groups.append(Group(prompt, tuple(spans)))
    return SharedPrefixRow(
        input_ids=torch.cat(ids)[None],
        position_ids=torch.cat(positions)[None],
        layout=Layout(tuple(groups)),
        source=torch.cat(source),
        target=torch.cat(target),
        answer=torch.cat(answer_index),
        lengths=lengths,
    )
