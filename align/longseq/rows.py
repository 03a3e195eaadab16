"""Packed rows and micro-batches of them as tensors, which move to a device, and between processes, as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from align.longseq.layout import Layout
from align.longseq.moving import HOST, joined, to_device, views_of


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
        columns: `[b, K, A]` the K numbers that the method reads of each row (`needs.columns`), once for each answer,
            0 for an absent one; fp64 as the whole numbers of the same bits (`moving.from_bits`), like the next two.
        weight: `[S]` of each scored token; `[0]` where tokens have no weights.
        weight_sum: `[b, A]` of each answer's tokens together; `[b, 0]` without weights.
        order: `[S]` each scored token's number in its answer, from 0; `[0]` without cuts.
        cuts: `[b, M]` tokens of the shorter answer of each pair, min(|y_w|, |y_l|), where a method reads both answers
            so far (`needs.fronts`); else `[b, 0]`.
        moved_from: the same row on the CPU, where this one is a copy of it on another device.
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
    columns: Tensor
    weight: Tensor
    weight_sum: Tensor
    order: Tensor
    cuts: Tensor
    moved_from: SharedPrefixRow | None = field(default=None, repr=False)

    @property
    def host(self) -> SharedPrefixRow:
        """The same row on the CPU, which is read there without waiting for the device.

        Only a row that was made on a device, and not moved there, is copied for it, and waited for.
        """
        return self.moved_from or self.to(HOST)

    def scored_tokens(self, nll_scope: str) -> tuple[Tensor, Tensor]:
        """`[S]` predictors and target ids: the answers' tokens, then the prompt's where the NLL covers it."""
        if nll_scope != "sequence":
            return self.predictor, self.target
        return torch.cat([self.predictor, self.context_predictor]), torch.cat(
            [self.target, self.context_target]
        )

    def to(self, device: torch.device | str) -> SharedPrefixRow:
        """The same row with its tensors on `device`; see `SharedPrefixBatch.to`."""
        return SharedPrefixBatch((self,)).to(device).rows[0]


_TENSORS = [each.name for each in fields(SharedPrefixRow) if each.type == "Tensor"]


@dataclass(frozen=True)
class SharedPrefixBatch:
    """A micro-batch: its prompts in order, packed into one or more rows.

    Attributes:
        rows: the packed rows.
        flat: `[n]` all numbers of all rows' tensors, which are views of it, so that a batch is pinned and moved as one
            tensor; None where each tensor lies by itself.
        known_digest: see `digest`; None where it is not computed yet.
    """

    rows: tuple[SharedPrefixRow, ...]
    flat: Tensor | None = field(default=None, repr=False)
    known_digest: int | None = field(default=None, repr=False)

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

    @property
    def digest(self) -> int:
        """64 bits that differ, but for chance, where rows do: layouts, tokens, positions, what is scored.

        Of a row of 131,072 tokens they take some milliseconds: `digested` computes them ahead.
        """
        if self.known_digest is not None:
            return self.known_digest
        numbers: Any = self.to(HOST)._flat.numpy()
        found = hashlib.blake2b(repr([row.layout for row in self.rows]).encode(), digest_size=8)
        found.update(numbers)
        return int.from_bytes(found.digest(), "big", signed=True)

    def digested(self) -> SharedPrefixBatch:
        """The same batch that knows its digest, wherever it is moved."""
        return replace(self, known_digest=self.digest)

    def flattened(self) -> SharedPrefixBatch:
        """The same batch with its tensors as views of one; itself where they are."""
        return self if self.flat is not None else self._over(self._flat)

    def pin_memory(self) -> SharedPrefixBatch:
        """The same batch in pinned memory, from which it is moved without waiting (a `DataLoader` calls this)."""
        return self._over(self._flat.pin_memory())

    def to(self, device: torch.device | str, *, non_blocking: bool = True) -> SharedPrefixBatch:
        """The same batch with its tensors on `device`: one copy, which keeps the batch on the CPU beside it.

        Args:
            device: where the model is.
            non_blocking: as loaders give it; a copy to a GPU is never waited for, one to the CPU always is.
        """
        device = torch.device(device)
        if all(tensor.device == device for tensor in self._tensors):
            return self
        if device == HOST and all(row.moved_from is not None for row in self.rows):
            return replace(self, rows=tuple(row.host for row in self.rows), flat=None)
        moved = self._over(to_device(self._flat, device))
        if device == HOST:
            return moved
        hosts = [row.moved_from or row for row in self.rows]
        kept = [replace(row, moved_from=host) for row, host in zip(moved.rows, hosts, strict=True)]
        return replace(moved, rows=tuple(kept))

    @property
    def _tensors(self) -> list[Tensor]:
        return [getattr(row, name) for row in self.rows for name in _TENSORS]

    @property
    def _flat(self) -> Tensor:
        return joined(self._tensors) if self.flat is None else self.flat

    def _over(self, flat: Tensor) -> SharedPrefixBatch:
        """The same batch with its tensors as views of `flat`."""
        shapes = [tensor.shape for tensor in self._tensors]
        return _of_flat(flat, shapes, [row.layout for row in self.rows], self.known_digest)

    def __reduce__(self) -> Any:
        """A worker of a loader hands on one tensor, not a view of it for each of the rows' tensors."""
        shapes = [tuple(tensor.shape) for tensor in self._tensors]
        layouts = [row.layout for row in self.rows]
        return _of_flat, (self._flat, shapes, layouts, self.known_digest)


def _of_flat(
    flat: Tensor, shapes: Sequence[Sequence[int]], layouts: Sequence[Layout], digest: int | None
) -> SharedPrefixBatch:
    """Rows whose tensors have these shapes and lie behind each other in `flat`."""
    views = iter(views_of(flat, shapes))
    rows = []
    for layout in layouts:
        tensors: dict[str, Any] = {name: next(views) for name in _TENSORS}
        rows.append(SharedPrefixRow(layout=layout, **tensors))
    return SharedPrefixBatch(tuple(rows), flat, digest)
