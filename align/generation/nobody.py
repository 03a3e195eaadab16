"""Who answers where a pipeline asks nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from align.generation.generators import Completion, Request


@dataclass(frozen=True)
class Nobody:
    """A `Generator` that has no model: nothing is opened, loaded or asked.

    Attributes:
        path: of the model whose tokenizer is used.
    """

    path: str

    @property
    def name(self) -> str:
        """For the card."""
        return f"the tokenizer of {self.path} alone"

    @property
    def identity(self) -> str:
        """No two answers could be told apart by it."""
        return "nobody"

    def generate(
        self, requests: Sequence[Request], *, finished: Collection[str]
    ) -> Iterator[Sequence[tuple[Request, Completion]]]:
        """Answers nothing; a pipeline with `uses_generator = False` has no requests.

        Raises:
            RuntimeError: it has some.
        """
        if requests:
            raise RuntimeError("a pipeline that says uses_generator = False has asked a model")
        return iter(())

    def waves(self, openings: Sequence[Sequence[Request]]) -> list[range]:
        """All together."""
        return [range(len(openings))]
