"""What is kept of text that a model has read, beside its context: the groups `suite/memory` and `generator/memory`.

A model reads or writes a text in chunks. After each one a memory may take it in; Temp-LoRA (arXiv 2401.11504) trains a
throw-away adapter on it, which is all that is left of what leaves the context.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from align.core.config import check_arguments
from align.core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Chunk(NamedTuple):
    """Tokens `middle … end − 1` of a text, with those from `start` on before them."""

    start: int
    middle: int
    end: int


class Kept(Protocol):
    """What a model has taken in of one text."""

    def read(self, ids: Tensor, first: int) -> None:
        """Takes tokens in.

        Args:
            ids: `[n]`, those before the chunk and the chunk.
            first: where the chunk begins in `ids`, 1 or more: a text's first token follows nothing.
        """

    def without(self) -> AbstractContextManager[None]:
        """Within it the model is as if it had taken nothing in."""


class Memory(Protocol):
    """What the groups `suite/memory` and `generator/memory` instantiate: a dataclass whose fields are the keys."""

    @property
    def chunk(self) -> int:
        """Tokens after which text is taken in; 0 for a memory that keeps nothing."""

    @property
    def context(self) -> int | None:
        """Tokens before a chunk that the model sees beside its memory; None: as many as there are."""

    @property
    def train_context(self) -> int:
        """Tokens before a chunk that `Kept.read` is given with it."""

    def check(self, where: str) -> None:
        """Raises UserError for a value out of range; `where` is the group's key, `suite.memory`."""

    def keep(self, model: PreTrainedModel, *, seed: int) -> AbstractContextManager[Kept]:
        """A memory of one text; behind the block the model is as it was, bit for bit.

        Args:
            model: changed in place within the block.
            seed: of everything drawn.
        """


@dataclass(frozen=True)
class NoMemory:
    """`memory=none`: a model sees its context, and nothing else."""

    @property
    def chunk(self) -> int:
        """None is taken in."""
        return 0

    @property
    def context(self) -> None:
        """All of it."""

    @property
    def train_context(self) -> int:
        """Nothing is taken in."""
        return 0

    def check(self, where: str) -> None:
        """It has no values."""

    def keep(self, model: PreTrainedModel, *, seed: int) -> AbstractContextManager[Kept]:
        """Never asked for: nothing is taken in."""
        raise NotImplementedError("memory=none keeps nothing")


@dataclass(frozen=True)
class TempLora:
    """`memory=temp_lora`; see hydra_conf/suite/memory/temp_lora.yaml and the generator's."""

    chunk: int = 1024
    context: int | None = 3072
    train_context: int = 3072
    r: int = 64
    alpha: int = 64
    dropout: float = 0.05
    target_modules: list[str] = field(default_factory=lambda: ["all-linear"])
    learning_rate: float = 5e-5
    steps: int = 2
    warmup_chunks: int = 2
    warmup_from: int = 1
    max_grad_norm: float = 1.0

    def check(self, where: str) -> None:
        """Raises UserError for a value out of range, or of the wrong type."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        check_arguments(values, TempLora, group=where, reserved={})
        least = {
            "chunk": 2,
            "context": 1,
            "train_context": 0,
            "r": 1,
            "alpha": 1,
            "steps": 1,
            "warmup_chunks": 0,
        }
        for key, bound in least.items():
            if values[key] is not None and values[key] < bound:
                raise UserError(f"{where}.{key}={values[key]} is too small: give {bound} or more.")
        if self.warmup_from not in (0, 1):
            raise UserError(
                f"{where}.warmup_from={self.warmup_from} is not known: with 1 the first chunk trains, with 0 not."
            )
        for key in ("learning_rate", "max_grad_norm"):
            if not 0 < values[key] < math.inf:
                raise UserError(f"{where}.{key}={values[key]} has to be a finite number above 0.")
        if not 0 <= self.dropout < 1:
            raise UserError(
                f"{where}.dropout={self.dropout} is no probability: give a number from 0 to below 1."
            )

    def rate(self, chunk: int) -> float:
        """The learning rate at the chunk of this number, from 0 on.

        With two chunks of warm-up half, all, all …; counted from 0 as in the released code: 0, half, all …, where the
        first chunk trains nothing.
        """
        if not self.warmup_chunks:
            return self.learning_rate
        return self.learning_rate * min(1.0, (chunk + self.warmup_from) / self.warmup_chunks)

    @contextmanager
    def keep(self, model: PreTrainedModel, *, seed: int) -> Iterator[Kept]:
        """A new adapter, and its optimizer; see `Memory.keep`."""
        from align.generation.temp_lora import attached

        with attached(self, model, seed=seed) as adapter:
            yield adapter


def chunks_of(tokens: int, *, chunk: int, context: int | None) -> list[Chunk]:
    """How a text is read: every token in one chunk, with up to `context` tokens before it.

    2,500 tokens in chunks of 1,024 with a context of 1,500: (0, 0, 1024), (0, 1024, 2048), (548, 2048, 2500).

    Args:
        tokens: of the text.
        chunk: tokens of a chunk; the last one may have fewer.
        context: tokens before it, at most; None: all.
    """
    starts = range(0, tokens, chunk)
    return [Chunk(0 if context is None else max(0, m - context), m, min(m + chunk, tokens)) for m in starts]


def check_memory(memory: Any, where: str) -> None:
    """Checks what a configuration gives as a memory.

    Args:
        memory: what was made of the group's node.
        where: the group's key: `suite.memory`.

    Raises:
        UserError: it is none, or has a value out of range.
    """
    if not callable(getattr(memory, "check", None)):
        raise UserError(f"{where} is no memory: choose one by its group, {where.replace('.', '/')}=none.")
    memory.check(where)


def refuse_at_server(memory: Memory) -> None:
    """Refuses a memory for a model that answers elsewhere.

    Raises:
        UserError: it keeps something.
    """
    check_memory(memory, "generator.memory")
    if memory.chunk:
        raise UserError(
            "generator/memory trains an adapter on the model that answers, which lies at a server here: take "
            "generator=local, or generator/memory=none."
        )
