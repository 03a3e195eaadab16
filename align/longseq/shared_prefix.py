"""A packed row: one prompt followed by its answers, several such prompts one after the other, no padding.

    | prompt 0 | chosen 0 | rejected 0,1 | rejected 0,2 | prompt 1 | chosen 1 | …

Every answer attends its prompt and itself, never a sibling or another prompt. An answer's first token is
predicted from the *prompt's* last hidden state, so scoring goes through an index and no token is doubled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from align.core.moved import renamed
from align.data.examples import TokenizedExample

if not TYPE_CHECKING:
    __getattr__ = partial(renamed, __name__)

# `(start, stop)` of consecutive tokens in a row.
Span = tuple[int, int]


@dataclass(frozen=True)
class PackedPrompt:
    """Where one prompt and its answers lie in a packed row; they follow each other without gaps.

    A prompt of 6 tokens at the row's start with answers of 3 and 2: `prompt=(0, 6), answers=((6, 9), (9, 11))`.
    """

    prompt: Span
    answers: tuple[Span, ...]

    @property
    def stop(self) -> int:
        """Where its last answer ends, or the prompt where there is none."""
        return self.answers[-1][1] if self.answers else self.prompt[1]


@dataclass(frozen=True)
class Layout:
    """Which tokens of a row are prompt and which belong to which answer. Reaches attention as a keyword."""

    prompts: tuple[PackedPrompt, ...]

    @property
    def length(self) -> int:
        """T, the tokens in the row."""
        return self.prompts[-1].stop

    @property
    def longest_sequence(self) -> int:
        """The most tokens that one answer sees, itself included: what a sliding window has to cover.

        A prompt of 10 tokens with answers of 4 and 3: 14.
        """
        return max(
            (packed.prompt[1] - packed.prompt[0])
            + max((stop - start for start, stop in packed.answers), default=0)
            for packed in self.prompts
        )


@dataclass(frozen=True)
class SharedPrefixRow:
    """One packed row, ready for the model (T tokens, S scored tokens, b prompts, A = 1 + M answers each).

    Attributes:
        input_ids: `[1, T]`.
        position_ids: `[1, T]`.
        layout: spans of prompts and answers.
        predictor: `[S]` index in `[0, T)` of the token whose hidden state predicts a scored one: the token before
            it, and for the first token of every answer the prompt's last. With a prompt at 0 … 5 and answers at
            6 … 8 and 9 … 10: `5, 6, 7, 5, 9`.
        target: `[S]` the scored token's id.
        answer: `[S]` flat index `prompt · A + answer` in `[0, b·A)`; answer 0 is the chosen one.
        lengths: `[b, A]` scored tokens of each answer; 0 for an absent one.
        context_predictor: `[C]` as `predictor`, for the tokens of prompt and chosen branch that no answer scores
            (the prompt's first token, which nothing predicts, is not among them).
        context_target: `[C]` their ids.
        context_prompt: `[C]` their prompt's index in `[0, b)`.
        context_length: `[b]` how many there are.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: Layout
    predictor: Tensor
    target: Tensor
    answer: Tensor
    lengths: Tensor
    context_predictor: Tensor
    context_target: Tensor
    context_prompt: Tensor
    context_length: Tensor

    def scored_tokens(self, nll_scope: str) -> tuple[Tensor, Tensor]:
        """`[S]` predictors and target ids: the answers' tokens, then the prompt's where the NLL covers it."""
        if nll_scope != "sequence":
            return self.predictor, self.target
        return torch.cat([self.predictor, self.context_predictor]), torch.cat(
            [self.target, self.context_target]
        )

    def to(self, device: torch.device | str) -> SharedPrefixRow:
        """The same row with its tensors on `device`."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
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

    @property
    def prompt_tokens(self) -> list[int]:
        """`[B]` tokens of each prompt with its answers."""
        return [packed.stop - packed.prompt[0] for row in self.rows for packed in row.layout.prompts]

    def to(self, device: torch.device | str) -> SharedPrefixBatch:
        """The same batch with its tensors on `device` (what `Trainer._prepare_inputs` calls)."""
        return SharedPrefixBatch(tuple(row.to(device) for row in self.rows))


def pack(examples: Sequence[TokenizedExample], *, tokens_per_row: int | None = None) -> SharedPrefixBatch:
    """Packs prompts with their answers into rows, in order, each row at most `tokens_per_row` tokens.

    Prompts that take 3,000, 4,000 and 2,000 tokens with their answers make rows of 7,000 and 2,000 with 8,192 a row.

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


def empty_row(batch: SharedPrefixBatch) -> SharedPrefixRow:
    """A row of no prompts, one token long that scores nothing: what a process reads while others still have rows."""
    like = batch.rows[0]
    nothing = like.predictor[:0]
    return SharedPrefixRow(
        input_ids=like.input_ids[:, :1],
        position_ids=like.position_ids[:, :1],
        layout=Layout((PackedPrompt((0, 1), ()),)),
        predictor=nothing,
        target=nothing,
        answer=nothing,
        lengths=like.lengths[:0],
        context_predictor=nothing,
        context_target=nothing,
        context_prompt=nothing,
        context_length=nothing,
    )


def _row(examples: Sequence[TokenizedExample], answers: int) -> SharedPrefixRow:
    """Lays out `examples` one after the other; `answers` = A of the whole batch."""
    prompts, offset = [], 0
    for example in examples:
        prompts.append(_packed_prompt(example, offset))
        offset = prompts[-1].answers[-1][1]
    lengths = torch.zeros(len(examples), answers, dtype=torch.long)
    scored: list[tuple[Tensor, Tensor, Tensor]] = []
    context: list[tuple[Tensor, Tensor, Tensor]] = []
    for b, (example, packed) in enumerate(zip(examples, prompts, strict=True)):
        context.append(_context_triples(example, packed, b))
        for j, (answer, span) in enumerate(zip(example.answers, packed.answers, strict=True)):
            predictor, target = _predictions(answer.input_ids, answer.scored, span, packed.prompt[1] - 1)
            lengths[b, j] = len(target)
            scored.append((predictor, target, torch.full_like(predictor, b * answers + j)))
    predictor, target, answer_index = (torch.cat(parts) for parts in zip(*scored, strict=True))
    context_predictor, context_target, context_prompt = (
        torch.cat(parts) for parts in zip(*context, strict=True)
    )
    return SharedPrefixRow(
        input_ids=torch.cat([_ids(example) for example in examples])[None],
        position_ids=torch.cat([_positions(example) for example in examples])[None],
        layout=Layout(tuple(prompts)),
        predictor=predictor,
        target=target,
        answer=answer_index,
        lengths=lengths,
        context_predictor=context_predictor,
        context_target=context_target,
        context_prompt=context_prompt,
        context_length=torch.tensor([len(ids) for _, ids, _ in context]),
    )


def _packed_prompt(example: TokenizedExample, offset: int) -> PackedPrompt:
    """Spans of one example that starts at `offset` of its row."""
    stop = offset + len(example.prompt_ids)
    prompt, spans = (offset, stop), []
    for answer in example.answers:
        spans.append((stop, stop + len(answer.input_ids)))
        stop = spans[-1][1]
    return PackedPrompt(prompt, tuple(spans))


def _ids(example: TokenizedExample) -> Tensor:
    """`[P + answers]` token ids in row order."""
    parts = [example.prompt_ids, *(answer.input_ids for answer in example.answers)]
    return torch.cat([torch.as_tensor(part, dtype=torch.long) for part in parts])


def _positions(example: TokenizedExample) -> Tensor:
    """`[P + answers]` positions: every answer goes on right after the prompt's last one."""
    prompt = torch.as_tensor(example.position_ids, dtype=torch.long)
    after = int(prompt[-1]) + 1
    answers = [torch.arange(after, after + len(answer.input_ids)) for answer in example.answers]
    return torch.cat([prompt, *answers])


def _predictions(
    input_ids: np.ndarray, wanted: np.ndarray, span: tuple[int, int], prompt_last: int
) -> tuple[Tensor, Tensor]:
    """Row indices of the hidden states that predict an answer's `wanted` tokens, and those tokens' ids.

    Of an answer at (14, 17), behind a prompt that ends with token 9, all wanted: 9, 14, 15.
    """
    predictor = torch.arange(span[0] - 1, span[1] - 1)
    predictor[0] = prompt_last
    mask = torch.as_tensor(wanted, dtype=torch.bool)
    return predictor[mask], torch.as_tensor(input_ids, dtype=torch.long)[mask]


def _context_triples(
    example: TokenizedExample, packed: PackedPrompt, prompt_index: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(predictor, target, prompt) of the prompt's tokens after the first and of the chosen branch's unscored ones."""
    start, stop = packed.prompt
    chosen = example.answers[0]
    branch_predictor, branch_target = _predictions(
        chosen.input_ids, ~np.asarray(chosen.scored, dtype=bool), packed.answers[0], stop - 1
    )
    predictor = torch.cat([torch.arange(start, stop - 1), branch_predictor])
    target = torch.cat([torch.as_tensor(example.prompt_ids, dtype=torch.long)[1:], branch_target])
    return predictor, target, torch.full_like(predictor, prompt_index)
