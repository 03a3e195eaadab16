"""Where prompts and their answers lie in a packed row."""

from __future__ import annotations

from dataclasses import dataclass

from align.patterns.pattern import Span as Span


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
